"""The Open Inference Protocol, version 2: models as other tools see them."""

"""One TOML run: reference data, training, evaluation, report, and a published version."""

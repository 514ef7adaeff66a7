"""What `protoc` makes of `proto/`, in a descriptor pool of its own; see `generate.py`."""

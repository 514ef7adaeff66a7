"""Programs that run in the environments of the peers; nothing here is imported by anything else."""

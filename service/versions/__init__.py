"""Which versions are served under which names, and how that changes while requests run."""

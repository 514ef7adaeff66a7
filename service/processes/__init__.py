"""The processes of the service: how they are started, connected, watched, replaced and ended."""

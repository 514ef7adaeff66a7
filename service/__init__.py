"""The service: bytes -> fields -> batch -> solution -> bytes.

Start with ``solver.py``, the story of a request, or ``rollout.py``, that of a rollout. ``http``, ``grpc`` and
``oip`` turn bytes into requests, ``batching`` puts them together, ``workers`` compute, ``versions`` say what
is served, ``processes`` keep all of it running, and ``serve.py`` puts the service together.
"""

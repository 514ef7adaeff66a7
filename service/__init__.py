"""The service: bytes -> fields -> batch -> solution -> bytes.

Start with ``solver.py``, the story of a request.
"""

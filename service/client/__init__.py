"""The Python clients: NumPy or xarray in and out, over HTTP or gRPC.

::

    from service.client import Client

    with Client("http://127.0.0.1:8080") as client:          # or "grpc://127.0.0.1:8081"
        answer = client.solve("darcy", permeability, source=2.0)
        answer.pressure, answer.error.upper, answer.model
        for frame in client.rollout("shallow_water", {"h": depth}, steps=100):
            frame.fields["h"], frame.time, frame.invariants, frame.error
        client.vjp("darcy", permeability, cotangent, wrt="log_permeability").gradient

``AsyncClient`` is its twin for an event loop.
"""

from service.client.answers import (
    Answer,
    CalibratedEstimate,
    ErrorEstimate,
    ErrorSummary,
    Frame,
    Gradient,
    Tangent,
)
from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.connection import ServiceError, Unreachable

__all__ = [
    "Answer",
    "AsyncClient",
    "CalibratedEstimate",
    "Client",
    "ErrorEstimate",
    "ErrorSummary",
    "Frame",
    "Gradient",
    "ServiceError",
    "Tangent",
    "Unreachable",
]

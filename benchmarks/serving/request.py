"""A request that is the same every time, and how its answer is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Encode", "Reply", "Request", "Route", "strict_json"]

Array = NDArray[np.float32]


@final
@dataclass(frozen=True)
class Request:
    """What is sent: a body to a path; of gRPC the path is the method and the body a message."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Reply:
    """What came back; of gRPC the status is 200 for OK."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Encode = Callable[[Array], Request]


@final
@dataclass(frozen=True)
class Route:
    """One way to ask a server for the answer to a field (y, x).

    Attributes:
        key: of the table's cells, such as ``triton-http``.
        title: as it stands in the table.
        encode: the request for a field.
        decode: the field in an answer; raises anything for what is none.
        json: the answer is JSON through and through.
    """

    key: str
    title: str
    protocol: Literal["http", "grpc"]
    port: int
    encode: Encode
    decode: Callable[[Reply], Array]
    json: bool = False

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"


def strict_json(body: bytes) -> Any:
    """JSON as the standard has it: NaN and Infinity are none."""

    def refuse(token: str) -> None:
        raise ValueError(f"{token} is no JSON")

    return json.loads(body, parse_constant=refuse)

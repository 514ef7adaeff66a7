"""What a request says beside its fields, whatever the protocol."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import LONGEST_QUOTE, InvalidField
from service.solver import ErrorKind, Method
from service.ticket import Priority, Ticket

__all__ = ["Options", "read_options", "ticket"]

OptionsOf = TypeVar("OptionsOf", bound=BaseModel)


@final
class Options(BaseModel):
    """What a request to solve says beside its fields and parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    method: Method = "auto"
    error: ErrorKind = "bound"
    tolerance: float | Literal["discretization"] | None = None
    timeout_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    priority: Priority = "interactive"
    reproducible: bool = False


def ticket(
    client: str, received: float, timeout_ms: float | None, priority: Priority, *, reproducible: bool
) -> Ticket:
    """What the queues need to know; the client's deadline counts from ``received`` on."""
    deadline = None if timeout_ms is None else received + timeout_ms / 1000
    return Ticket(client, priority, reproducible, deadline)


def read_options(
    kind: type[OptionsOf], names: Sequence[str], given: Mapping[str, Any], *, strict: bool
) -> OptionsOf:
    """Options of a kind.

    Args:
        kind: what they are checked against.
        names: what else a request of this kind has.
        given: as they came.
        strict: take a number only as a number; a query has nothing but text.
    """
    try:
        return kind.model_validate(given, strict=strict)
    except ValidationError as error:
        fault = error.errors()[0]
        # whatever was sent, the answer quotes no more than a line of it
        name, got = str(fault["loc"][0])[:LONGEST_QUOTE], repr(fault["input"])[:LONGEST_QUOTE]
        if fault["type"] != "extra_forbidden":
            raise InvalidField(name, fault["type"], f"{name}: {fault['msg']}, got {got}") from error
        known = [*names, *kind.model_fields]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise InvalidField(name, "unknown", f"{name!r} is not an option; did you mean {near!r}?") from error

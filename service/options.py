"""What a request says beside its fields, whatever the protocol."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.deadline import deadline_at
from service.errors import LONGEST_QUOTE, InvalidField, quoted
from service.solver import ErrorKind, Method
from service.ticket import Priority, Ticket

__all__ = ["Asker", "Options", "Urgency", "read_options"]

OptionsOf = TypeVar("OptionsOf", bound=BaseModel)


class Urgency(BaseModel):
    """When the answer is wanted, and what it may depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_ms: float | None = Field(None, gt=0, allow_inf_nan=False)
    priority: Priority = "interactive"
    reproducible: bool = False


@final
class Options(Urgency):
    """What a request to solve says beside its fields and parameters."""

    model: str | None = None
    method: Method = "auto"
    error: ErrorKind = "bound"
    tolerance: float | Literal["discretization"] | None = None


class Asker(NamedTuple):
    """Who asks, and since when.

    Attributes:
        client: whose share of the workers the request uses.
        key: requests with equal keys are answered by equal versions; empty: by chance.
        received: ``time.perf_counter()`` when the request arrived [s].
    """

    client: str
    key: str
    received: float

    def ticket(self, urgency: Urgency, timeout_ms: float | None = None) -> Ticket:
        """What the queues need to know; ``timeout_ms`` is a deadline that came otherwise [ms]."""
        own = urgency.timeout_ms
        least = own if timeout_ms is None else timeout_ms if own is None else min(own, timeout_ms)
        return Ticket(self.client, urgency.priority, urgency.reproducible, deadline_at(self.received, least))


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
    # before anything looks at all of them: there may be a million, and pydantic has an error for each
    for unknown in given:
        if unknown not in kind.model_fields:
            raise _no_option(unknown[:LONGEST_QUOTE], [*names, *kind.model_fields])
    try:
        return kind.model_validate(given, strict=strict)
    except ValidationError as error:
        fault = error.errors()[0]
        # whatever was sent, the answer quotes no more than a line of it
        name, message = str(fault["loc"][0]), f"{fault['msg']}, got {quoted(fault['input'])}"
        raise InvalidField(name, fault["type"], f"{name}: {message}") from error


def _no_option(name: str, known: Sequence[str]) -> InvalidField:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return InvalidField(name, "unknown", f"{name!r} is not an option; did you mean {near!r}?")

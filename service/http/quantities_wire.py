"""The wire form of quantities: JSON, or a ``.npy`` field with their names in the query; JSON comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, final

from problems import Problem
from service.codec import array_from_lists, decode_json, decode_npy, encode_json
from service.errors import LONGEST_QUOTE, InvalidField, UnsupportedMedia
from service.http.wire import (
    JSON,
    NPY,
    media_type,
    names_of,
    read_query,
    refuse_query,
    take_parameters,
    timing_header,
)
from service.options import Asker, Urgency, read_options
from service.quantities import QuantitiesRequest, QuantitiesResponse
from service.settings import Limits

__all__ = ["json_quantities", "quantities_headers", "read_quantities"]

QUANTITIES: Final = "quantities"


@final
class QuantityOptions(Urgency):
    """What a request for quantities says beside its field."""

    quantities: Sequence[str]
    model: str | None = None
    tolerance: float | None = None


def read_quantities(
    problem: Problem, headers: Mapping[str, str], query: str, body: bytes, limits: Limits, asker: Asker
) -> QuantitiesRequest:
    """The request in a body that is not compressed, or no longer."""
    media = media_type(headers)
    if media == JSON:
        refuse_query(query)
        document = decode_json(body, most_lists=limits.batch * (limits.grid_side + 1) + 2)
        given: dict[str, Any] = {
            spec.name: array_from_lists(spec.name, document.pop(spec.name))
            for spec in problem.inputs
            if spec.name in document
        }
        given |= {spec.name: document.pop(spec.name) for spec in problem.parameters if spec.name in document}
        return _request(problem, given, document, asker, strict=True)
    if media == NPY and len(problem.inputs) == 1:
        rest: dict[str, Any] = dict(read_query(query))
        (field,) = problem.inputs
        given = {field.name: decode_npy(field.name, body), **take_parameters(problem, rest)}
        if QUANTITIES in rest:
            rest[QUANTITIES] = _split(rest[QUANTITIES])
        return _request(problem, given, rest, asker, strict=False)
    raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {media[:LONGEST_QUOTE] or 'none'}")


def _split(text: str) -> list[str]:
    """Names between commas, but for the one within a reading."""
    names: list[str] = []
    for part in text.split(","):
        if names and names[-1].count("(") > names[-1].count(")"):
            names[-1] += f",{part}"
        else:
            names.append(part.strip())
    return names


def _request(
    problem: Problem, given: Mapping[str, Any], said: dict[str, Any], asker: Asker, *, strict: bool
) -> QuantitiesRequest:
    if QUANTITIES not in said:
        message = f'{QUANTITIES}: expected a list of names, such as ["mean", "outflow.left"]'
        raise InvalidField(QUANTITIES, "missing", message)
    options = read_options(QuantityOptions, names_of(problem), said, strict=strict)
    return QuantitiesRequest(
        problem.name,
        given,
        options.quantities,
        options.model,
        options.tolerance,
        asker.ticket(options),
        asker.key,
        asker.received,
    )


def json_quantities(response: QuantitiesResponse) -> bytes:
    """Value and half-width of each quantity: numbers of a single field, lists of a batch."""
    found = zip(
        response.names,
        response.units,
        response.values.T.tolist(),
        response.half_widths.T.tolist(),
        strict=True,
    )
    return encode_json(
        {
            "quantities": [
                {"quantity": name, "unit": unit, "value": value, "half_width": half_width}
                for name, unit, value, half_width in found
            ],
            "model": response.model,
            "operator": response.operator,
            "certified": all(response.certified),
            "timing_ms": response.timing._asdict(),
        }
    )


def quantities_headers(response: QuantitiesResponse) -> dict[str, str]:
    """What the headers say beside."""
    return {"Server-Timing": timing_header(response.timing), "Mno-Batch-Size": str(response.batch_size)}

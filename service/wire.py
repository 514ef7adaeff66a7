"""The wire form of a request and its answer: JSON, or ``.npy`` with the rest in query and headers."""

from __future__ import annotations

import decimal
import difflib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from problems import ErrorBound, Problem
from service.codec import array_from_lists, decode_json, decode_npy, encode_json, encode_npy
from service.errors import LONGEST_QUOTE, InvalidField, NotAcceptable, NotAvailableYet, UnsupportedMedia
from service.settings import Limits
from service.solver import ErrorKind, Method, SolveRequest, SolveResponse

__all__ = [
    "JSON",
    "NPY",
    "Form",
    "accepted_media",
    "body_limit",
    "body_weight",
    "choose_form",
    "is_gzip",
    "media_type",
    "read_options",
    "read_request",
    "refuse_query",
    "write_response",
]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
PNG: Final = "image/png"
# what a byte of JSON may take while it is parsed: "300," becomes 56 bytes of objects and arrays
JSON_WEIGHT: Final = 16
# proxies and clients take 8 KiB of headers, and there are others
LONGEST_ESTIMATE: Final = 6 * 2**10
Form = Literal["application/json", "application/x-npy"]


OptionsOf = TypeVar("OptionsOf", bound=BaseModel)


class Options(BaseModel):
    """What a request says beside its fields and parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    method: Method = "auto"
    error: ErrorKind = "bound"
    tolerance: float | Literal["discretization"] | None = None
    timeout_ms: float | None = Field(None, gt=0, allow_inf_nan=False)


def choose_form(headers: Mapping[str, str]) -> Form:
    """The first form of the client's ``Accept`` list, by weight, that the service writes."""
    accepted = accepted_media(headers.get("accept", "*/*"))
    for media in accepted:
        if media in ("*/*", "application/*", JSON):
            return JSON
        if media == NPY:
            return NPY
    if {PNG, "image/*"} & set(accepted):
        raise NotAvailableYet(f"{PNG} comes with a later release; accept {JSON} or {NPY}")
    raise NotAcceptable(f"expected Accept: {JSON} or {NPY}, got {headers['accept']}")


def accepted_media(accept: str) -> list[str]:
    """The media types of an ``Accept`` header, the best liked first."""
    weighted = []
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
        weighted.append((_weight(weights), media))
    # sorting is stable: equal weights keep the client's order
    return [media for weight, media in sorted(weighted, key=lambda pair: -pair[0]) if weight > 0]


def _weight(texts: list[str]) -> float:
    try:
        return float(texts[0]) if texts else 1.0
    except ValueError:
        return 0.0


def media_type(headers: Mapping[str, str]) -> str:
    """What the body is, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def body_limit(headers: Mapping[str, str], limits: Limits) -> int:
    """The largest body of this kind, before and after decompression [B]."""
    return min(limits.body_bytes, limits.json_bytes) if media_type(headers) == JSON else limits.body_bytes


def body_weight(headers: Mapping[str, str]) -> int:
    """How many bytes of memory a byte of the body counts for."""
    return JSON_WEIGHT if media_type(headers) == JSON else 1


def is_gzip(headers: Mapping[str, str]) -> bool:
    """Whether the body is compressed.

    Raises:
        UnsupportedMedia: in a way that the service does not read.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMedia(f"expected Content-Encoding gzip or none, got {encoding}")
    return encoding == "gzip"


def read_request(
    problem: Problem,
    headers: Mapping[str, str],
    query: Mapping[str, str],
    body: bytes,
    limits: Limits,
    received: float,
) -> SolveRequest:
    """The request in a body that is not compressed, or no longer."""
    media = media_type(headers)
    if media == JSON:
        return _from_json(problem, query, body, limits, received)
    if media == NPY:
        return _from_npy(problem, query, body, received)
    raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {media or 'none'}")


def _from_json(
    problem: Problem, query: Mapping[str, str], body: bytes, limits: Limits, received: float
) -> SolveRequest:
    # a batch of the largest fields: a list for each row, each field and the batch
    document = decode_json(body, most_lists=limits.batch * (limits.grid_side + 1) + 1)
    refuse_query(query)
    given: dict[str, Any] = {
        spec.name: array_from_lists(spec.name, document.pop(spec.name))
        for spec in problem.inputs
        if spec.name in document
    }
    given |= {spec.name: document.pop(spec.name) for spec in problem.parameters if spec.name in document}
    options = read_options(Options, _names(problem), document, strict=True)
    return SolveRequest(problem.name, given, **vars(options), received=received)


def _from_npy(problem: Problem, query: Mapping[str, str], body: bytes, received: float) -> SolveRequest:
    if len(problem.inputs) != 1:
        raise UnsupportedMedia(f"{problem.name} has several input fields: send {JSON}")
    (spec,) = problem.inputs
    array = decode_npy(spec.name, body)
    rest = dict(query)
    parameters = {
        spec.name: _number(spec.name, rest.pop(spec.name)) for spec in problem.parameters if spec.name in rest
    }
    options = read_options(Options, _names(problem), rest, strict=False)
    dtype: Literal["float32", "float64"] = "float64" if array.dtype == np.float64 else "float32"
    given = {spec.name: array, **parameters}
    return SolveRequest(problem.name, given, dtype, **vars(options), received=received)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidField(
            name, "numbers", f"{name}: expected a number, got {text[:LONGEST_QUOTE]!r}"
        ) from error


def _names(problem: Problem) -> list[str]:
    return [spec.name for spec in (*problem.inputs, *problem.parameters)]


def refuse_query(query: Mapping[str, str]) -> None:
    """Refuse a query beside a JSON body."""
    if query:
        option = next(iter(query))[:LONGEST_QUOTE]
        raise InvalidField(option, "unknown", f"with {JSON} the options go into the body, not the query")


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


def write_response(response: SolveResponse, form: Form) -> Response:
    """The answer's bytes and headers."""
    if form == NPY:
        # a problem with several output fields would need a container; none has
        ((name, answer),) = response.fields.items()
        return Response(encode_npy(answer), media_type=NPY, headers={"Mno-Field": name} | _headers(response))
    trust = _trust(response)
    document = {**response.fields, **trust, "timing_ms": vars(response.timing)}
    return Response(encode_json(document), media_type=JSON)


def _trust(response: SolveResponse) -> dict[str, Any]:
    errors = None if response.errors is None else [asdict(error) for error in response.errors]
    known = list(response.in_distribution)
    return {
        "model": response.model,
        "method": response.method,
        "operator": response.operator,
        "error": errors[0] if errors and response.single else errors,
        "in_distribution": known[0] if response.single else known,
        "certified": False,
        "iterations": max(response.iterations),
    }


def _headers(response: SolveResponse) -> dict[str, str]:
    """All that JSON says beside the fields, as compact JSON; the bounds of a batch are shortened."""
    trust = _trust(response)
    return {
        "Mno-Model": trust["model"] or "",
        "Mno-Method": trust["method"],
        "Mno-Operator": trust["operator"],
        "Mno-Error-Estimate": _estimate(response).decode(),
        "Mno-In-Distribution": orjson.dumps(trust["in_distribution"]).decode(),
        "Mno-Certified": orjson.dumps(trust["certified"]).decode(),
        "Mno-Iterations": str(trust["iterations"]),
        "Server-Timing": ", ".join(f"{name};dur={value}" for name, value in vars(response.timing).items()),
    }


def _estimate(response: SolveResponse) -> bytes:
    if response.errors is None:
        return b"null"
    return orjson.dumps(response.errors[0]) if response.single else _short_estimate(response.errors)


def _short_estimate(errors: Sequence[ErrorBound]) -> bytes:
    """An array for each quantity, or only a summary where that is too long for a header."""
    common = {
        "kind": errors[0].kind,
        "norm": errors[0].norm,
        "steps": max(error.steps for error in errors),
    }
    arrays = {
        "lower": [_four_digits(error.lower, decimal.ROUND_FLOOR) for error in errors],
        "upper": [_four_digits(error.upper, decimal.ROUND_CEILING) for error in errors],
        "l2_estimate": [_four_digits(error.l2_estimate, decimal.ROUND_HALF_EVEN) for error in errors],
    }
    estimate = orjson.dumps(common | arrays)
    if len(estimate) <= LONGEST_ESTIMATE:
        return estimate
    summary = {
        "upper_max": max(arrays["upper"]),
        "l2_estimate_median": statistics.median(arrays["l2_estimate"]),
        "fields": len(errors),
    }
    return orjson.dumps(common | summary)


def _four_digits(value: float, rounding: str) -> float:
    return float(decimal.Context(prec=4, rounding=rounding).create_decimal_from_float(value))

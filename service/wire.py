"""The wire form of a request and its answer: JSON, or ``.npy`` with the rest in query and headers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from problems import Problem
from service.codec import array_from_lists, decode_json, decode_npy, encode_json, encode_npy, gunzip
from service.errors import InvalidField, NotAcceptable, NotAvailableYet, UnsupportedMedia
from service.solver import ErrorKind, Method, SolveRequest, SolveResponse

__all__ = ["JSON", "NPY", "Form", "choose_form", "read_request", "write_response"]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
PNG: Final = "image/png"
LONGEST_QUOTE: Final = 80
Form = Literal["application/json", "application/x-npy"]


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
    for media in _accepted(headers.get("accept", "*/*")):
        if media in ("*/*", "application/*", JSON):
            return JSON
        if media == NPY:
            return NPY
        if media in (PNG, "image/*"):
            raise NotAvailableYet(f"{PNG} comes with a later release; accept {JSON} or {NPY}")
    raise NotAcceptable(f"expected Accept: {JSON} or {NPY}, got {headers['accept']}")


def _accepted(accept: str) -> list[str]:
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


def read_request(
    problem: Problem,
    headers: Mapping[str, str],
    query: Mapping[str, str],
    body: bytes,
    limit: int,
    received: float,
) -> SolveRequest:
    """The request in a body of at most ``limit`` bytes, also after decompression."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise UnsupportedMedia(f"expected Content-Encoding gzip or none, got {encoding}")
    plain = gunzip(body, limit) if encoding == "gzip" else body
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == JSON:
        return _from_json(problem, query, plain, received)
    if media == NPY:
        return _from_npy(problem, query, plain, received)
    raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {media or 'none'}")


def _from_json(problem: Problem, query: Mapping[str, str], body: bytes, received: float) -> SolveRequest:
    document = decode_json(body)
    if query:
        option = next(iter(query))[:LONGEST_QUOTE]
        raise InvalidField(option, "unknown", f"with {JSON} the options go into the body, not the query")
    given: dict[str, Any] = {
        spec.name: array_from_lists(spec.name, document.pop(spec.name))
        for spec in problem.inputs
        if spec.name in document
    }
    given |= {spec.name: document.pop(spec.name) for spec in problem.parameters if spec.name in document}
    options = _options(problem, document, strict=True)
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
    options = _options(problem, rest, strict=False)
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


def _options(problem: Problem, given: Mapping[str, Any], *, strict: bool) -> Options:
    """``strict`` takes a number only as a number; a query has nothing but text."""
    try:
        return Options.model_validate(given, strict=strict)
    except ValidationError as error:
        fault = error.errors()[0]
        # whatever was sent, the answer quotes no more than a line of it
        name, got = str(fault["loc"][0])[:LONGEST_QUOTE], repr(fault["input"])[:LONGEST_QUOTE]
        if fault["type"] != "extra_forbidden":
            raise InvalidField(name, fault["type"], f"{name}: {fault['msg']}, got {got}") from error
        known = [spec.name for spec in (*problem.inputs, *problem.parameters)] + list(Options.model_fields)
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
    """All that JSON says beside the fields; structured values are compact JSON."""
    trust = _trust(response)
    return {
        "Mno-Model": trust["model"] or "",
        "Mno-Method": trust["method"],
        "Mno-Operator": trust["operator"],
        "Mno-Error-Estimate": orjson.dumps(trust["error"]).decode(),
        "Mno-In-Distribution": orjson.dumps(trust["in_distribution"]).decode(),
        "Mno-Certified": orjson.dumps(trust["certified"]).decode(),
        "Mno-Iterations": str(trust["iterations"]),
        "Server-Timing": ", ".join(f"{name};dur={value}" for name, value in vars(response.timing).items()),
    }

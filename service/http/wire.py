"""The wire form of a request and its answer: JSON, or ``.npy`` with the rest in query and headers."""

from __future__ import annotations

import decimal
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

import numpy as np
import orjson

from problems import ErrorBound, Problem
from service.codec import Buffer, Coding, array_from_lists, decode_json, decode_npy, encode_json
from service.errors import LONGEST_QUOTE, InvalidField, NotAcceptable, UnsupportedMedia
from service.options import Asker, Options, read_options
from service.settings import Limits
from service.solver import SolveRequest, SolveResponse
from service.telemetry.timing import Timing

__all__ = [
    "JSON",
    "JSON_WEIGHT",
    "LENGTH_OF_JSON",
    "NPY",
    "PNG",
    "Form",
    "accepted_media",
    "accepts_gzip",
    "answer_headers",
    "body_limit",
    "body_weight",
    "choose_form",
    "encoding",
    "four_digits",
    "json_answer",
    "media_type",
    "names_of",
    "npy_request",
    "read_query",
    "read_request",
    "refuse_query",
    "take_parameters",
    "timing_header",
]

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
PNG: Final = "image/png"
# the header of a body that is JSON to there, and bytes from there
LENGTH_OF_JSON: Final = "Inference-Header-Content-Length"
# what a byte of JSON may take while it is parsed: "300," becomes 56 bytes of objects and arrays
JSON_WEIGHT: Final = 16
# proxies and clients take 8 KiB of headers, and there are others
LONGEST_ESTIMATE: Final = 6 * 2**10
# what a query is parsed to is remembered up to this length
LONGEST_USUAL_QUERY: Final = 256
MOST_OPTIONS: Final = 50
Form = Literal["application/json", "application/x-npy", "image/png"]


def choose_form(headers: Mapping[str, str]) -> Form:
    """The first form of the client's ``Accept`` list, by weight, that the service writes."""
    for media in accepted_media(headers.get("accept", "*/*")):
        if media in ("*/*", "application/*", JSON):
            return JSON
        if media == NPY:
            return NPY
        if media in (PNG, "image/*"):
            return PNG
    raise NotAcceptable(f"expected Accept: {JSON}, {NPY} or {PNG}, got {headers['accept'][:LONGEST_QUOTE]}")


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
    return min(limits.body_bytes, limits.json_bytes) if _may_be_json(headers) else limits.body_bytes


def body_weight(headers: Mapping[str, str]) -> int:
    """How many bytes of memory a byte of the body counts for."""
    return JSON_WEIGHT if _may_be_json(headers) else 1


def _may_be_json(headers: Mapping[str, str]) -> bool:
    """Clients of the Open Inference Protocol send JSON of no type, and a header where bytes follow it."""
    return media_type(headers) != NPY and LENGTH_OF_JSON not in headers


def encoding(headers: Mapping[str, str], known: Sequence[Coding] = ("gzip",)) -> Coding | None:
    """How the body is compressed; None: it is not.

    Raises:
        UnsupportedMedia: in a way that the service does not read.
    """
    named = headers.get("content-encoding", "identity").strip().lower()
    if named == "identity":
        return None
    for coding in known:
        if named == coding:
            return coding
    raise UnsupportedMedia(
        f"expected Content-Encoding {' or '.join(known)}, or none, got {named[:LONGEST_QUOTE]}"
    )


def accepts_gzip(headers: Mapping[str, str]) -> bool:
    """Whether the client reads a compressed answer."""
    return "gzip" in accepted_media(headers.get("accept-encoding", ""))


def read_request(
    problem: Problem,
    headers: Mapping[str, str],
    query: str,
    body: bytes,
    limits: Limits,
    asker: Asker,
) -> SolveRequest:
    """The request in a body that is not compressed, or no longer."""
    media = media_type(headers)
    if media == JSON:
        return _from_json(problem, query, body, limits, asker)
    if media == NPY:
        return npy_request(problem, query, body, asker)
    raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {media[:LONGEST_QUOTE] or 'none'}")


def _from_json(problem: Problem, query: str, body: bytes, limits: Limits, asker: Asker) -> SolveRequest:
    # a batch of the largest fields: a list for each row, each field and the batch
    document = decode_json(body, most_lists=limits.batch * (limits.grid_side + 1) + 1)
    refuse_query(query)
    given: dict[str, Any] = {
        spec.name: array_from_lists(spec.name, document.pop(spec.name))
        for spec in problem.inputs
        if spec.name in document
    }
    given |= {spec.name: document.pop(spec.name) for spec in problem.parameters if spec.name in document}
    options = read_options(Options, names_of(problem), document, strict=True)
    return _request(problem, given, "float32", options, asker)


def npy_request(problem: Problem, query: str, body: Buffer, asker: Asker) -> SolveRequest:
    """The request in a ``.npy`` body and a query."""
    if len(problem.inputs) != 1:
        raise UnsupportedMedia(f"{problem.name} has several input fields: send {JSON}")
    name = problem.inputs[0].name
    array = decode_npy(name, body)
    parameters, options = _known_query(problem, query)
    dtype: Literal["float32", "float64"] = "float64" if array.dtype == np.float64 else "float32"
    return _request(problem, {name: array, **parameters}, dtype, options, asker)


def _request(
    problem: Problem,
    given: Mapping[str, Any],
    dtype: Literal["float32", "float64"],
    options: Options,
    asker: Asker,
) -> SolveRequest:
    return SolveRequest(
        problem.name,
        given,
        dtype,
        options.model,
        options.method,
        options.error,
        options.tolerance,
        asker.ticket(options),
        asker.key,
        asker.received,
    )


def _known_query(problem: Problem, query: str) -> tuple[Mapping[str, float], Options]:
    if len(query) > LONGEST_USUAL_QUERY:
        return _read_query(problem, query)
    return _usual_query(problem, query)


def _read_query(problem: Problem, query: str) -> tuple[Mapping[str, float], Options]:
    rest = read_query(query)
    parameters = take_parameters(problem, rest)
    return parameters, read_options(Options, names_of(problem), rest, strict=False)


# clients ask for the same again and again
_usual_query = lru_cache(maxsize=512)(_read_query)


def read_query(query: str) -> dict[str, str]:
    """The options in a query; of those given twice the last one counts."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MOST_OPTIONS))
    except ValueError as error:
        raise InvalidField("query", "options", f"expected at most {MOST_OPTIONS} options: {error}") from error


def take_parameters(problem: Problem, options: dict[str, str]) -> dict[str, float]:
    """The problem's parameters, taken out of what a query says."""
    return {
        spec.name: _number(spec.name, options.pop(spec.name))
        for spec in problem.parameters
        if spec.name in options
    }


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidField(
            name, "numbers", f"{name}: expected a number, got {text[:LONGEST_QUOTE]!r}"
        ) from error


def names_of(problem: Problem) -> list[str]:
    """What a request for a problem has beside options."""
    return [spec.name for spec in (*problem.inputs, *problem.parameters)]


def refuse_query(query: str) -> None:
    """Refuse a query beside a JSON body."""
    if query:
        option = query.partition("=")[0][:LONGEST_QUOTE]
        raise InvalidField(option, "unknown", f"with {JSON} the options go into the body, not the query")


def json_answer(response: SolveResponse) -> bytes:
    """The answer as JSON."""
    return encode_json({**response.fields, **_trust(response), "timing_ms": response.timing._asdict()})


def _trust(response: SolveResponse) -> dict[str, Any]:
    errors = None if response.errors is None else [_error(error) for error in response.errors]
    novelty = response.novelty
    known, scores, explanations = (
        (None, None, None)
        if novelty is None
        else (
            [each.in_distribution for each in novelty],
            [each.score for each in novelty],
            [each.explanation for each in novelty],
        )
    )
    return {
        "model": response.model,
        "method": response.method,
        "operator": response.operator,
        "error": errors[0] if errors and response.single else errors,
        "in_distribution": known[0] if known and response.single else known,
        "ood_score": scores[0] if scores and response.single else scores,
        "explanation": explanations[0] if explanations and response.single else explanations,
        "certified": response.certified,
        "iterations": max(response.iterations),
    }


def answer_headers(response: SolveResponse, form: Form) -> dict[str, str]:
    """What the headers of an answer say.

    Beside JSON, only how long it took; else all that JSON has beside the fields, as compact JSON, where the
    bounds of a batch are shortened.
    """
    timing = {
        "Server-Timing": timing_header(response.timing),
        "Mno-Batch-Size": str(response.batch_size),
    }
    if form == JSON:
        return timing
    known = response.in_distribution
    return {
        "Mno-Field": ",".join(response.fields),
        "Mno-Model": response.model or "",
        "Mno-Method": response.method,
        "Mno-Operator": response.operator,
        "Mno-Error-Estimate": _estimate(response).decode(),
        "Mno-In-Distribution": _flags(known, single=response.single),
        **_scores(response),
        "Mno-Certified": str(response.certified).lower(),
        "Mno-Iterations": str(max(response.iterations)),
        **timing,
    }


def _flags(known: tuple[bool, ...] | None, *, single: bool) -> str:
    if known is None:
        return "null"
    return orjson.dumps(known[0] if single else known).decode()


def _scores(response: SolveResponse) -> dict[str, str]:
    """How unusual the inputs are, where that is known."""
    scores = [each.score for each in response.novelty or ()]
    if not scores or all(score is None for score in scores):
        return {}
    short = [None if score is None else round(score, 4) for score in scores]
    return {"Mno-Ood-Score": orjson.dumps(short[0] if response.single else short).decode()}


def timing_header(timing: Timing) -> str:
    """Where the time went, as ``Server-Timing`` says it."""
    return (
        f"queue;dur={timing.queue}, compute;dur={timing.compute}, "
        f"certify;dur={timing.certify}, total;dur={timing.total}"
    )


def _estimate(response: SolveResponse) -> bytes:
    if response.errors is None:
        return b"null"
    return orjson.dumps(_error(response.errors[0])) if response.single else _short_estimate(response.errors)


def _error(bound: ErrorBound) -> dict[str, Any]:
    """What is known of an error; bounds in L2 and at the worst point only where there are some."""
    known = {
        "kind": bound.kind,
        "norm": bound.norm,
        "lower": bound.lower,
        "upper": bound.upper,
        "l2_estimate": bound.l2_estimate,
        "steps": bound.steps,
        "reference": bound.reference,
    }
    if math.isfinite(bound.l2_upper):
        known |= {"l2_lower": bound.l2_lower, "l2_upper": bound.l2_upper}
    if math.isfinite(bound.max_upper):
        known |= {"max_lower": bound.max_lower, "max_upper": bound.max_upper}
    return known


def _short_estimate(errors: Sequence[ErrorBound]) -> bytes:
    """An array for each quantity, or only a summary where that is too long for a header."""
    common = {
        "kind": errors[0].kind,
        "norm": errors[0].norm,
        "steps": max(error.steps for error in errors),
        "reference": errors[0].reference,
    }
    arrays = {
        "lower": [four_digits(error.lower, decimal.ROUND_FLOOR) for error in errors],
        "upper": [four_digits(error.upper, decimal.ROUND_CEILING) for error in errors],
        "l2_estimate": [four_digits(error.l2_estimate, decimal.ROUND_HALF_EVEN) for error in errors],
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


def four_digits(value: float, rounding: str) -> float:
    """A number with four digits, rounded as ``decimal`` calls it."""
    return float(decimal.Context(prec=4, rounding=rounding).create_decimal_from_float(value))

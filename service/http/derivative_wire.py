"""The wire form of derivatives: JSON, or ``.npy`` with the options in the query and the rest in headers."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, final

import numpy as np
import orjson

from problems import EvolutionProblem, Problem
from service.codec import array_from_lists, decode_json, decode_npy, encode_json
from service.errors import LONGEST_QUOTE, InvalidField, UnsupportedMedia
from service.gradient import Derivative, GradientMethod, JvpRequest, VjpRequest
from service.http.directions_wire import COTANGENT, HIGHEST_RANK, TANGENT, direction_of, directions_of
from service.http.rollout_derivative_wire import read_rollout_jvp, read_rollout_vjp
from service.http.wire import (
    JSON,
    NPY,
    Form,
    four_digits,
    media_type,
    names_of,
    read_query,
    refuse_query,
    take_parameters,
    timing_header,
)
from service.options import Asker, Urgency, read_options
from service.rollout_question import RolloutJvpRequest, RolloutVjpRequest
from service.settings import Limits

__all__ = ["Reads", "derivative_headers", "json_derivative", "read_jvp", "read_vjp"]

Request = TypeVar("Request", VjpRequest, JvpRequest)
Dtype = Literal["float32", "float64"]
# who makes a request of a problem, its inputs, its directions, dtype, options, and who asks
Make = Callable[[Problem, Mapping[str, Any], Any, Dtype, "DerivativeOptions", Asker], Request]
# who reads one: problem, headers, query, body, limits, and who asks
Reads = Callable[
    [Problem, Mapping[str, str], str, bytes, Limits, Asker],
    VjpRequest | JvpRequest | RolloutVjpRequest | RolloutJvpRequest,
]


@final
class DerivativeOptions(Urgency):
    """What a request for a gradient or a tangent says beside its arrays."""

    model: str | None = None
    method: GradientMethod = "auto"
    wrt: str | None = None
    tolerance: float | None = None


def read_vjp(
    problem: Problem, headers: Mapping[str, str], query: str, body: bytes, limits: Limits, asker: Asker
) -> VjpRequest | RolloutVjpRequest:
    """The request for a gradient in a body that is not compressed, or no longer."""
    media = _media(headers)
    if isinstance(problem, EvolutionProblem):
        return read_rollout_vjp(problem, media, query, body, limits, asker)
    if media == NPY:
        return _from_npy(problem, query, body, asker, _vjp)
    return _from_json(problem, query, body, limits, asker, _vjp, COTANGENT)


def read_jvp(
    problem: Problem, headers: Mapping[str, str], query: str, body: bytes, limits: Limits, asker: Asker
) -> JvpRequest | RolloutJvpRequest:
    """The request for a tangent in a body that is not compressed, or no longer."""
    media = _media(headers)
    if isinstance(problem, EvolutionProblem):
        return read_rollout_jvp(problem, media, query, body, limits, asker)
    if media == NPY:
        return _from_npy(problem, query, body, asker, _jvp)
    return _from_json(problem, query, body, limits, asker, _jvp, TANGENT)


def _media(headers: Mapping[str, str]) -> str:
    media = media_type(headers)
    if media not in (JSON, NPY):
        got = media[:LONGEST_QUOTE] or "none"
        raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {got}")
    return media


def _from_json(
    problem: Problem,
    query: str,
    body: bytes,
    limits: Limits,
    asker: Asker,
    make: Make[Request],
    directions: str,
) -> Request:
    # two batches of the largest fields: a list for each row, each field, each direction and each batch
    document = decode_json(body, most_lists=2 * limits.batch * (limits.grid_side + 2) + 2)
    refuse_query(query)
    found = document.pop(directions, None)
    given: dict[str, Any] = {
        spec.name: array_from_lists(spec.name, document.pop(spec.name))
        for spec in problem.inputs
        if spec.name in document
    }
    given |= {spec.name: document.pop(spec.name) for spec in problem.parameters if spec.name in document}
    options = read_options(DerivativeOptions, [*names_of(problem), directions], document, strict=True)
    return make(problem, given, found, "float32", options, asker)


def _from_npy(problem: Problem, query: str, body: bytes, asker: Asker, make: Make[Request]) -> Request:
    if not len(problem.inputs) == len(problem.outputs) == 1:
        raise UnsupportedMedia(f"{problem.name} has several fields: send {JSON}")
    stack = decode_npy("body", body)
    if stack.ndim not in (3, HIGHEST_RANK) or len(stack) < 2:
        expected = "(1 + directions, ny, nx) or (1 + directions, batch, ny, nx)"
        message = f"expected {expected}, the field and one direction or more, got shape {stack.shape}"
        raise InvalidField("body", "shape", message)
    rest = read_query(query)
    given = {problem.inputs[0].name: stack[0], **take_parameters(problem, rest)}
    options = read_options(DerivativeOptions, names_of(problem), rest, strict=False)
    dtype: Dtype = "float64" if stack.dtype == np.float64 else "float32"
    return make(problem, given, stack[1] if len(stack) == 2 else stack[1:], dtype, options, asker)


def _vjp(
    problem: Problem,
    given: Mapping[str, Any],
    directions: Any,
    dtype: Dtype,
    options: DerivativeOptions,
    asker: Asker,
) -> VjpRequest:
    return VjpRequest(
        problem.name,
        given,
        directions_of(COTANGENT, problem.outputs, directions),
        options.wrt,
        dtype,
        options.model,
        options.method,
        options.tolerance,
        asker.ticket(options),
        asker.key,
        asker.received,
    )


def _jvp(
    problem: Problem,
    given: Mapping[str, Any],
    directions: Any,
    dtype: Dtype,
    options: DerivativeOptions,
    asker: Asker,
) -> JvpRequest:
    if directions is None:
        raise InvalidField(TANGENT, "missing", f"{TANGENT}: expected an array in the shape of the input")
    return JvpRequest(
        problem.name,
        given,
        direction_of(TANGENT, directions),
        options.wrt,
        dtype,
        options.model,
        options.method,
        options.tolerance,
        asker.ticket(options),
        asker.key,
        asker.received,
    )


def json_derivative(response: Derivative, key: Literal["gradient", "tangent"]) -> bytes:
    """The derivative as JSON, under ``key``."""
    known = list(response.in_distribution)
    return encode_json(
        {
            **_numbers(response, key),
            "model": response.model,
            "method": response.method,
            "operator": response.operator,
            "error": _error(response, lambda upper: upper),
            "certified": response.certified,
            "in_distribution": known[0] if response.single else known,
            "timing_ms": response.timing._asdict(),
        }
    )


def _numbers(response: Derivative, key: Literal["gradient", "tangent"]) -> dict[str, Any]:
    """The derivative, and what it is of."""
    if key == "gradient":
        return {key: response.values, "wrt": response.name}
    if not response.steps:
        return {key: response.values, "of": response.name}
    names = response.name.split(",")
    channels = np.moveaxis(response.values, -3, 0)
    # the encoder takes no other layout
    fields = {name: np.ascontiguousarray(field) for name, field in zip(names, channels, strict=True)}
    return {key: fields, "of": names, "steps": response.steps}


def _error(response: Derivative, written: Callable[[float], float]) -> dict[str, Any] | None:
    if response.errors is None:
        return None
    # JSON has no word for what is infinite
    upper = [written(each) if np.isfinite(each) else None for each in response.errors.ravel().tolist()]
    shaped = np.array(upper, object).reshape(response.errors.shape).tolist()
    return {"kind": "guaranteed", "norm": response.norm, "upper": shaped}


def derivative_headers(response: Derivative, form: Form) -> dict[str, str]:
    """What the headers of a derivative say: beside ``.npy`` all that JSON has beside its numbers."""
    timing = {"Server-Timing": timing_header(response.timing), "Mno-Batch-Size": str(response.batch_size)}
    if form == JSON:
        return timing
    known = [str(each).lower() for each in response.in_distribution]
    steps = {"Mno-Steps": ",".join(map(str, response.steps))} if response.steps else {}
    error = _error(response, lambda upper: four_digits(upper, decimal.ROUND_CEILING))
    return {
        "Mno-Field": response.name,
        **steps,
        "Mno-Model": response.model or "",
        "Mno-Method": response.method,
        "Mno-Operator": response.operator,
        "Mno-Error-Estimate": orjson.dumps(error).decode(),
        "Mno-Certified": str(response.certified).lower(),
        "Mno-In-Distribution": known[0] if response.single else f"[{','.join(known)}]",
        **timing,
    }

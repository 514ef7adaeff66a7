"""The wire form of a gradient: JSON, or ``.npy`` with field and cotangent one after the other.

In JSON, ``cotangent`` is an object of arrays by solution field, or one array where there is one such field.
As ``.npy`` the first axis has two entries: the input field, and the cotangent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import numpy as np

from problems import Problem
from service.codec import array_from_lists, decode_json, decode_npy, encode_json
from service.errors import LONGEST_QUOTE, InvalidField, UnsupportedMedia
from service.gradient import GradientMethod, VjpRequest, VjpResponse
from service.http.wire import (
    JSON,
    NPY,
    Form,
    media_type,
    names_of,
    read_query,
    refuse_query,
    take_parameters,
    timing_header,
)
from service.options import Asker, Urgency, read_options
from service.settings import Limits

__all__ = ["json_gradient", "read_vjp", "vjp_headers"]

COTANGENT = "cotangent"


@final
class VjpOptions(Urgency):
    """What a request for a gradient says beside its arrays."""

    model: str | None = None
    method: GradientMethod = "auto"
    wrt: str | None = None


def read_vjp(
    problem: Problem, headers: Mapping[str, str], query: str, body: bytes, limits: Limits, asker: Asker
) -> VjpRequest:
    """The request in a body that is not compressed, or no longer."""
    media = media_type(headers)
    if media == JSON:
        return _from_json(problem, query, body, limits, asker)
    if media == NPY:
        return _from_npy(problem, query, body, asker)
    raise UnsupportedMedia(f"expected Content-Type {JSON} or {NPY}, got {media[:LONGEST_QUOTE] or 'none'}")


def _from_json(problem: Problem, query: str, body: bytes, limits: Limits, asker: Asker) -> VjpRequest:
    # two batches of the largest fields: a list for each row, each field and each batch
    document = decode_json(body, most_lists=2 * limits.batch * (limits.grid_side + 1) + 2)
    refuse_query(query)
    cotangents = _cotangents(problem, document.pop(COTANGENT, None))
    given: dict[str, Any] = {
        spec.name: array_from_lists(spec.name, document.pop(spec.name))
        for spec in problem.inputs
        if spec.name in document
    }
    given |= {spec.name: document.pop(spec.name) for spec in problem.parameters if spec.name in document}
    options = read_options(VjpOptions, [*names_of(problem), COTANGENT], document, strict=True)
    return _request(problem, given, cotangents, "float32", options, asker)


def _cotangents(problem: Problem, given: object) -> dict[str, Any]:
    if isinstance(given, list) and len(problem.outputs) == 1:
        given = {problem.outputs[0].name: given}
    if not isinstance(given, dict):
        expected = ", ".join(f'"{spec.name}": [[...]]' for spec in problem.outputs)
        raise InvalidField(COTANGENT, "missing", f"{COTANGENT}: expected an object {{{expected}}}")
    return {name: array_from_lists(name[:LONGEST_QUOTE], values) for name, values in given.items()}


def _from_npy(problem: Problem, query: str, body: bytes, asker: Asker) -> VjpRequest:
    if not len(problem.inputs) == len(problem.outputs) == 1:
        raise UnsupportedMedia(f"{problem.name} has several fields: send {JSON}")
    pair = decode_npy("body", body)
    if pair.ndim not in (3, 4) or len(pair) != 2:
        message = f"expected (2, ny, nx) or (2, batch, ny, nx), field and cotangent, got shape {pair.shape}"
        raise InvalidField("body", "shape", message)
    rest = read_query(query)
    given = {problem.inputs[0].name: pair[0], **take_parameters(problem, rest)}
    options = read_options(VjpOptions, names_of(problem), rest, strict=False)
    dtype: Literal["float32", "float64"] = "float64" if pair.dtype == np.float64 else "float32"
    return _request(problem, given, {problem.outputs[0].name: pair[1]}, dtype, options, asker)


def _request(
    problem: Problem,
    given: Mapping[str, Any],
    cotangents: Mapping[str, Any],
    dtype: Literal["float32", "float64"],
    options: VjpOptions,
    asker: Asker,
) -> VjpRequest:
    return VjpRequest(
        problem.name,
        given,
        cotangents,
        options.wrt,
        dtype,
        options.model,
        options.method,
        asker.ticket(options),
        asker.key,
        asker.received,
    )


def json_gradient(response: VjpResponse) -> bytes:
    """The gradient as JSON."""
    known = list(response.in_distribution)
    return encode_json(
        {
            "gradient": response.gradient,
            "wrt": response.wrt,
            "model": response.model,
            "method": response.method,
            "operator": response.operator,
            "in_distribution": known[0] if response.single else known,
            "timing_ms": response.timing._asdict(),
        }
    )


def vjp_headers(response: VjpResponse, form: Form) -> dict[str, str]:
    """What the headers of a gradient say: beside ``.npy`` all that JSON has beside the gradient."""
    timing = {"Server-Timing": timing_header(response.timing), "Mno-Batch-Size": str(response.batch_size)}
    if form == JSON:
        return timing
    known = [str(each).lower() for each in response.in_distribution]
    return {
        "Mno-Field": response.wrt,
        "Mno-Model": response.model,
        "Mno-Method": response.method,
        "Mno-Operator": response.operator,
        "Mno-In-Distribution": known[0] if response.single else f"[{','.join(known)}]",
        **timing,
    }

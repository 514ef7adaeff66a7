"""The Open Inference Protocol over HTTP: JSON documents, and tensors as JSON numbers or as bytes after them.

Where tensors are bytes, ``Inference-Header-Content-Length`` says how long the JSON before them is, and each
of them how many bytes it has, in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from service.abortable import Buffer
from service.codec import array_from_lists, decode_json, encode_json
from service.errors import LONGEST_QUOTE, InvalidField
from service.oip import InferRequest, InferResponse, Parameter
from service.oip_tensor import Tensor, tensor_from_bytes, tensor_from_numbers
from service.options import Asker
from service.wire import timing_header

__all__ = ["HEADER_LENGTH", "Asked", "binary_answer", "binary_request"]

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
OCTETS: Final = "application/octet-stream"
MOST_TENSORS: Final = 64
MOST_PARAMETERS: Final = 64


@final
@dataclass(frozen=True)
class Asked:
    """A request, and how its answer is to be written.

    Attributes:
        binary: whether outputs that say nothing themselves are bytes.
        chosen: what outputs say themselves, by name.
    """

    request: InferRequest
    binary: bool
    chosen: Mapping[str, bool]


def binary_request(
    model: str, version: str, body: Buffer, header_length: str | None, asker: Asker, most_lists: int = 4096
) -> Asked:
    """The request in a body.

    Args:
        model: as the path names it.
        version: the same.
        body: JSON, and the bytes of tensors.
        header_length: the header of this name; None: everything is JSON.
        asker: who asks.
        most_lists: in the JSON; more are refused.

    Raises:
        InvalidField: it is none.
    """
    end = len(body) if header_length is None else _header_length(header_length, len(body))
    document = decode_json(bytes(body[:end]), most_lists)
    tensors = _inputs(document.pop("inputs", None), memoryview(body)[end:])
    outputs, chosen = _outputs(document.pop("outputs", []))
    parameters = _parameters(document.pop("parameters", {}))
    request_id = document.pop("id", "")
    _refuse_unknown(document, "request", ("id", "inputs", "outputs", "parameters"))
    if not isinstance(request_id, str):
        raise InvalidField("id", "type", f"id: expected a string, got {_quote(request_id)}")
    binary = parameters.pop("binary_data_output", False) is True
    request = InferRequest(model, version, request_id, tensors, outputs, parameters, asker)
    return Asked(request, binary, chosen)


def _header_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        message = (
            f"{HEADER_LENGTH}: expected at most the {most} bytes of the body, got {text[:LONGEST_QUOTE]!r}"
        )
        raise InvalidField(HEADER_LENGTH, "length", message)
    return int(text)


def _inputs(given: object, data: memoryview) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for entry in _objects("inputs", given):
        name, size = _name(entry), _parameters(entry.pop("parameters", {})).get("binary_data_size")
        if name in tensors:
            raise InvalidField(name, "twice", f"{name}: expected each input once")
        datatype, shape = entry.pop("datatype", None), entry.pop("shape", None)
        if not isinstance(datatype, str) or not isinstance(shape, list):
            raise InvalidField(name, "missing", f"{name}: expected a datatype and a shape")
        if size is None:
            numbers = array_from_lists(name, entry.pop("data", None))
            tensors[name] = tensor_from_numbers(name, datatype, shape, numbers)
        else:
            if type(size) is not int or not 0 <= size <= len(data):
                message = f"binary_data_size: expected at most the {len(data)} bytes left, got {_quote(size)}"
                raise InvalidField(name, "bytes", f"{name}: {message}")
            tensors[name] = tensor_from_bytes(name, datatype, shape, data[:size])
            data = data[size:]
        _refuse_unknown(entry, name, ("name", "datatype", "shape", "parameters", "data"))
    if len(data):
        message = f"expected no bytes after those of the inputs, got {len(data)}"
        raise InvalidField("body", "bytes", f"{message}; {HEADER_LENGTH} says where they begin")
    return tensors


def _outputs(given: object) -> tuple[tuple[str, ...], dict[str, bool]]:
    names: list[str] = []
    chosen: dict[str, bool] = {}
    for entry in _objects("outputs", given):
        name, parameters = _name(entry), _parameters(entry.pop("parameters", {}))
        if name in names:
            raise InvalidField(name, "twice", f"{name}: expected each output once")
        if parameters.pop("classification", 0):
            raise InvalidField(name, "classification", f"{name} is a field, not a vector of scores")
        if "binary_data" in parameters:
            chosen[name] = parameters["binary_data"] is True
        names.append(name)
        _refuse_unknown(entry, name, ("name", "parameters"))
    return tuple(names), chosen


def _objects(what: str, given: object) -> list[dict[str, Any]]:
    if isinstance(given, list) and len(given) <= MOST_TENSORS and all(type(each) is dict for each in given):
        return given
    raise InvalidField(what, "type", f"{what}: expected a list of at most {MOST_TENSORS} objects")


def _name(entry: dict[str, Any]) -> str:
    name = entry.pop("name", None)
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_QUOTE:
        raise InvalidField("name", "type", f"name: expected that of a tensor, got {_quote(name)}")
    return name


def _parameters(given: object) -> dict[str, Parameter]:
    if isinstance(given, dict) and len(given) <= MOST_PARAMETERS:
        wrong = [value for value in given.values() if not isinstance(value, bool | int | float | str)]
        if not wrong:
            return given
    message = f"parameters: expected an object of at most {MOST_PARAMETERS} strings, numbers and booleans"
    raise InvalidField("parameters", "type", message)


def _refuse_unknown(rest: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    if rest:
        name = next(iter(rest))[:LONGEST_QUOTE]
        raise InvalidField(name, "unknown", f"{name!r} is not expected in {where}: it has {', '.join(known)}")


def _quote(value: object) -> str:
    return repr(value)[:LONGEST_QUOTE]


def binary_answer(response: InferResponse, asked: Asked) -> tuple[dict[str, str], list[Buffer]]:
    """Headers and body of an answer; the body comes in parts, which are not copied."""
    entries, data = [], []
    for tensor in response.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if asked.chosen.get(tensor.name, asked.binary):
            raw = tensor.raw()
            entry["parameters"] = {"binary_data_size": len(raw)}
            data.append(raw)
        else:
            entry["data"] = tensor.array.ravel()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    document["outputs"] = entries
    head = encode_json(document)
    headers = {"Content-Type": OCTETS if data else "application/json"}
    if data:
        headers[HEADER_LENGTH] = str(len(head))
    if response.timing is not None:
        headers["Server-Timing"] = timing_header(response.timing)
    headers["Mno-Batch-Size"] = str(response.batch_size)
    return headers, [head, *data]

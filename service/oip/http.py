"""The Open Inference Protocol over HTTP: JSON documents, and tensors as JSON numbers or as bytes after them.

Where tensors are bytes, ``Inference-Header-Content-Length`` says how long the JSON before them is, and each
of them how many bytes it has, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, final

from service.codec import array_from_lists, decode_json, encode_json
from service.errors import LONGEST_QUOTE, InvalidField, TooLarge, quoted
from service.http.abortable import Buffer
from service.http.wire import LENGTH_OF_JSON, timing_header
from service.http.written import SMALL_ANSWER, computed
from service.oip.inference import InferRequest, InferResponse
from service.oip.order import Order, Parameter
from service.oip.tensor import Described, Tensor, described, size_of, tensor_from_numbers
from service.options import Asker

__all__ = ["Asked", "binary_answer", "binary_request", "written_answer"]

OCTETS: Final = "application/octet-stream"
# up to this length what the JSON of a request says is remembered [B]
USUAL_HEAD: Final = 1024
# of what says which bytes are what; more of JSON has to say that it is JSON, and counts as such [B]
LONGEST_HEAD: Final = 2**20
MOST_TENSORS: Final = 64
MOST_PARAMETERS: Final = 64


@final
class Asked(NamedTuple):
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
        TooLarge: there is more of JSON than bytes of tensors need.
    """
    end = len(body) if header_length is None else _header_length(header_length, len(body))
    begin = bytes(body[:end])
    read = _known_head if end + len(model) + len(version) <= USUAL_HEAD else _read_head
    head = read(model, version, begin, most_lists)
    inputs = _filled(head.order, memoryview(body)[end:])
    return Asked(InferRequest(head.order, head.id, inputs, asker), head.binary, head.chosen)


@final
@dataclass(frozen=True)
class _Head:
    """What the path and the JSON of a request say."""

    order: Order
    id: str
    binary: bool
    chosen: Mapping[str, bool]


def _read_head(model: str, version: str, head: bytes, most_lists: int) -> _Head:
    document = decode_json(head, most_lists)
    inputs = _inputs(document.pop("inputs", None))
    outputs, chosen = _outputs(document.pop("outputs", []))
    parameters = _parameters(document.pop("parameters", {}))
    request_id = document.pop("id", "")
    _refuse_unknown(document, "request", ("id", "inputs", "outputs", "parameters"))
    if not isinstance(request_id, str):
        raise InvalidField("id", "type", f"id: expected a string, got {quoted(request_id)}")
    binary = parameters.pop("binary_data_output", False) is True
    return _Head(Order(model, version, inputs, outputs, parameters), request_id, binary, chosen)


# clients send the same again and again, and other bytes after it
_known_head = lru_cache(maxsize=256)(_read_head)


def _header_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        message = (
            f"{LENGTH_OF_JSON}: expected at most the {most} bytes of the body, got {text[:LONGEST_QUOTE]!r}"
        )
        raise InvalidField(LENGTH_OF_JSON, "length", message)
    if int(text) > LONGEST_HEAD:
        raise TooLarge(f"the JSON before the tensors exceeds {LONGEST_HEAD} bytes; send all of them as bytes")
    return int(text)


def _inputs(given: object) -> tuple[Tensor | Described, ...]:
    tensors: dict[str, Tensor | Described] = {}
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
            tensors[name] = _of_size(described(name, datatype, shape), size)
        _refuse_unknown(entry, name, ("name", "datatype", "shape", "parameters", "data"))
    return tuple(tensors.values())


def _of_size(tensor: Described, size: Parameter) -> Described:
    if type(size) is not int or size != tensor.size:
        message = f"{tensor.name}: expected a binary_data_size of {tensor.size}, got {quoted(size)}"
        raise InvalidField(tensor.name, "bytes", message)
    return tensor


def _filled(order: Order, data: memoryview) -> dict[str, Tensor]:
    """The inputs, which take their bytes in their order."""
    tensors: dict[str, Tensor] = {}
    start = 0
    for each in order.inputs:
        if isinstance(each, Described):
            tensors[each.name] = each.filled(data[start : start + each.size])
            start += each.size
        else:
            tensors[each.name] = each
    if len(data) != start:
        message = f"expected {start} bytes after the JSON, got {len(data)}"
        raise InvalidField("body", "bytes", f"{message}; {LENGTH_OF_JSON} says where they begin")
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
        raise InvalidField("name", "type", f"name: expected that of a tensor, got {quoted(name)}")
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


async def written_answer(response: InferResponse, asked: Asked) -> tuple[dict[str, str], list[Buffer]]:
    """See ``binary_answer``; where there are many numbers to write, a thread does."""
    chosen, binary = asked.chosen, asked.binary
    numbers = sum([each.array.size for each in response.outputs if not chosen.get(each.name, binary)])
    answer: tuple[dict[str, str], list[Buffer]]
    answer = await computed(numbers > SMALL_ANSWER, binary_answer, response, asked)
    return answer


def binary_answer(response: InferResponse, asked: Asked) -> tuple[dict[str, str], list[Buffer]]:
    """Headers and body of an answer; the body comes in parts, which are not copied."""
    chosen, binary = asked.chosen, asked.binary
    if all(chosen.get(tensor.name, binary) for tensor in response.outputs):
        data = [tensor.raw() for tensor in response.outputs]
        said = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in response.outputs])
        head = _with_id(_binary_head(response.model, response.version, said), response.id)
    else:
        head, data = _mixed_answer(response, asked)
    headers = {"Content-Type": OCTETS if data else "application/json"}
    if data:
        headers[LENGTH_OF_JSON] = str(len(head))
    if response.timing is not None:
        headers["Server-Timing"] = timing_header(response.timing)
    headers["Mno-Batch-Size"] = str(response.batch_size)
    return headers, [head, *data]


def _mixed_answer(response: InferResponse, asked: Asked) -> tuple[bytes, list[memoryview]]:
    entries, data = [], []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if asked.chosen.get(tensor.name, asked.binary):
            raw = tensor.raw()
            entry["parameters"] = {"binary_data_size": len(raw)}
            data.append(raw)
        else:
            entry["data"] = tensor.array.ravel()
        entries.append(entry)
    return _document(response.model, response.version, response.id, entries), data


@lru_cache(maxsize=256)
def _binary_head(model: str, version: str, tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """The JSON of an answer of which all tensors are bytes."""
    entries = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": math.prod(shape) * size_of(datatype)},
        }
        for name, datatype, shape in tensors
    ]
    return _document(model, version, "", entries)


def _document(model: str, version: str, request_id: str, outputs: Sequence[Mapping[str, Any]]) -> bytes:
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id:
        document["id"] = request_id
    return encode_json({**document, "outputs": outputs})


def _with_id(document: bytes, request_id: str) -> bytes:
    """A remembered answer with its request's id, which nothing keeps: it is as long as a client likes."""
    if not request_id:
        return document
    return b"%b,%b" % (encode_json({"id": request_id})[:-1], document[1:])

"""Messages of inference of the Open Inference Protocol <-> requests and answers of `service/oip`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.errors import LONGEST_QUOTE, InvalidField, NotAvailableYet
from service.grpc.call import Buffer, Call
from service.grpc.parts import Parts, tagged, varint
from service.grpc.wire import KEY_NAME
from service.oip.inference import NO_SHARED_MEMORY, InferRequest, InferResponse
from service.oip.order import Order, Parameter
from service.oip.tensor import Described, Tensor, described, tensor_from_numbers
from service.options import Asker
from service.pb import inference_pb2 as pb
from service.pb.solver_pb2 import Fault
from service.pb.usual import ELEMENTS, ID, Cuts, Form, Wanted

__all__ = ["INFER_FORM", "read_inference", "streamed", "write_failure", "write_inference"]

# where a message has the elements of a datatype, if not as raw bytes
CONTENTS: Final = {"FP32": "fp32_contents", "FP64": "fp64_contents"}
# inputs of a usual request
MOST_TENSORS: Final = 64

# tags: a field's number and 2, that its length comes next
RESPONSE_ID: Final = b"\x1a"  # ModelInferResponse.id = 3
RAW_OUTPUT: Final = b"\x32"  # ModelInferResponse.raw_output_contents = 6
INFER_RESPONSE: Final = b"\x12"  # ModelStreamInferResponse.infer_response = 2


# --- requests


def _order(message: pb.ModelInferRequest) -> Order:
    """What a message says beside its id and raw contents."""
    return Order(
        message.model_name,
        message.model_version,
        _inputs(message),
        tuple(output.name for output in message.outputs),
        {name: _parameter(name, value) for name, value in message.parameters.items()},
    )


def _elements(message: pb.ModelInferRequest) -> Sequence[bytes]:
    return message.raw_input_contents


# ModelInferRequest.id = 3 and .raw_input_contents = 7
INFER_CUTS: Final[Cuts] = {0x1A: ID, 0x3A: ELEMENTS}
INFER_FORM: Final = Form(pb.ModelInferRequest, INFER_CUTS, range(MOST_TENSORS + 1), _order, _elements)


def read_inference(wanted: Wanted[Order], call: Call, received: float) -> InferRequest:
    """The request of a call.

    Args:
        wanted: what came.
        call: with or in which it came.
        received: when, on the clock of ``time.perf_counter`` [s].

    Raises:
        InvalidField: tensors whose elements are missing, too many, or no elements.
    """
    order = wanted.said()
    return InferRequest(
        order,
        wanted.id,
        _filled(order.inputs, wanted.elements),
        Asker(call.client, call.metadata.get(KEY_NAME, ""), received),
        None if call.deadline is None else max(1000 * (call.deadline - received), 0.001),
    )


def _filled(inputs: Sequence[Described | Tensor], elements: Sequence[Buffer]) -> dict[str, Tensor]:
    tensors, rest = {}, iter(elements)
    for each in inputs:
        tensors[each.name] = each.filled(next(rest)) if isinstance(each, Described) else each
    return tensors


def _inputs(message: pb.ModelInferRequest) -> Sequence[Described | Tensor]:
    raw = len(message.raw_input_contents)
    if raw and raw != len(message.inputs):
        got = f"got {raw} for {len(message.inputs)} inputs"
        raise InvalidField(
            "raw_input_contents", "length", f"raw_input_contents: expected one for each input, {got}"
        )
    inputs: dict[str, Described | Tensor] = {}
    for given in message.inputs:
        if given.name in inputs:
            what = given.name[:LONGEST_QUOTE]
            raise InvalidField(what, "twice", f"{what}: got two inputs of this name; send one")
        if raw:
            inputs[given.name] = described(given.name, given.datatype, given.shape)
        else:
            numbers = _numbers(given)
            inputs[given.name] = tensor_from_numbers(given.name, given.datatype, given.shape, numbers)
    return list(inputs.values())


def _numbers(given: pb.ModelInferRequest.InferInputTensor) -> NDArray[Any]:
    name = given.name[:LONGEST_QUOTE]
    if "shared_memory_region" in given.parameters:
        raise NotAvailableYet(f"{name}: {NO_SHARED_MEMORY}")
    field = CONTENTS.get(given.datatype)
    if field is None:
        expected = "expected raw_input_contents, or fp32_contents and fp64_contents"
        raise InvalidField(
            name, "datatype", f"{name}: {expected}; {given.datatype[:LONGEST_QUOTE]!r} has raw only"
        )
    return np.array(getattr(given.contents, field), np.float64 if given.datatype == "FP64" else np.float32)


def _parameter(name: str, value: pb.InferParameter) -> Parameter:
    kind = value.WhichOneof("parameter_choice")
    if kind is None:
        what = name[:LONGEST_QUOTE]
        raise InvalidField(what, "missing", f"{what}: expected a value, got a parameter without one")
    parameter: Parameter = getattr(value, kind)
    return parameter


# --- answers


def write_inference(response: InferResponse, more: Mapping[str, Parameter] | None = None) -> Parts:
    """A ``ModelInferResponse``; ``more`` are parameters."""
    said = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in response.outputs])
    parts: list[Buffer] = [_head(response.model, response.version, said)]
    for tensor in response.outputs:
        data = tensor.raw()
        parts += (RAW_OUTPUT + varint(len(data)), data)
    if response.id:
        parts += tagged(RESPONSE_ID, [response.id.encode()])
    if more:
        parts.append(_parameters(more).SerializeToString())
    return parts


# the same again and again, with other elements
@lru_cache(maxsize=256)
def _head(model: str, version: str, tensors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """An answer without id and elements."""
    head = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, datatype, shape in tensors:
        head.outputs.add(name=name, datatype=datatype, shape=shape)
    return head.SerializeToString()


def _parameters(known: Mapping[str, Parameter]) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse()
    for name, value in known.items():
        _set(message.parameters[name], value)
    return message


def _set(parameter: pb.InferParameter, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int():
            parameter.int64_param = value
        case float():
            parameter.double_param = value
        case _:
            parameter.string_param = str(value)


def write_failure(name: str, fault: Fault) -> Parts:
    """The ``ModelStreamInferResponse`` to the request with this id, which has no other."""
    failed = pb.ModelStreamInferResponse(error_message=fault.message)
    failed.infer_response.id = name
    # of this protocol, a stream's answer has no other place for what a call says in its trailing metadata
    _set(failed.infer_response.parameters["mno-fault"], fault.type)
    if fault.retry_after:
        _set(failed.infer_response.parameters["retry-after"], fault.retry_after)
    return [failed.SerializeToString()]


def streamed(parts: Parts) -> Parts:
    """A ``ModelStreamInferResponse`` around a ``ModelInferResponse``."""
    return tagged(INFER_RESPONSE, parts)

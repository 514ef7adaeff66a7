"""A message that is like one before it is read as if there had been none."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ServiceFault
from service.grpc.inference_wire import INFER_FORM
from service.grpc.wire import SOLVE_FORM
from service.pb import inference_pb2, solver_pb2
from service.pb.usual import MOST_BYTES, MOST_KNOWN, Form, Reader, Wanted

FIELD = bytes(range(16)) * 4
Message = Callable[..., bytes]
BOUNDED = settings(max_examples=200, derandomize=True, deadline=None)


def solve_message(name: str = "7", data: bytes = FIELD, **changes: Any) -> bytes:
    message = solver_pb2.SolveRequest(id=name, problem="darcy", **changes)
    tensor = solver_pb2.Tensor(dtype="float32", shape=[4, 4], data=data)
    message.fields["permeability"].CopyFrom(tensor)
    return message.SerializeToString(deterministic=True)


def infer_message(name: str = "7", data: bytes = FIELD, **changes: Any) -> bytes:
    message = inference_pb2.ModelInferRequest(
        id=name, model_name="darcy", raw_input_contents=[data], **changes
    )
    message.inputs.add(name="permeability", datatype="FP32", shape=[4, 4])
    message.parameters["source"].double_param = 2.0
    return message.SerializeToString(deterministic=True)


EVERY_FORM = pytest.mark.parametrize(
    ("form", "usual"), [(SOLVE_FORM, solve_message), (INFER_FORM, infer_message)], ids=["solve", "infer"]
)


def read(reader: Reader[Any, Any], message: bytes) -> Wanted[Any]:
    return asyncio.run(reader.read(message))


def outcome(reader: Reader[Any, Any], message: bytes) -> object:
    try:
        wanted = read(reader, message)
        said = wanted.said()
    except ServiceFault as fault:
        return str(fault)
    # an order is known by what it says
    return wanted.id, [bytes(data) for data in wanted.elements], getattr(said, "__dict__", said)


@EVERY_FORM
def test_the_elements_of_the_next_one_stay_where_they_are(form: Form[Any, Any], usual: Message) -> None:
    reader = Reader(form)
    first = read(reader, usual())
    said = first.said()
    second = read(reader, later := usual("8", FIELD[::-1]))
    assert second.id == "8"
    (elements,) = second.elements
    assert isinstance(elements, memoryview)
    assert (elements.obj, bytes(elements)) == (later, FIELD[::-1])
    assert second.said() is said


@EVERY_FORM
@BOUNDED
@given(data=st.data())
def test_what_was_read_before_changes_nothing(
    form: Form[Any, Any], usual: Message, data: st.DataObject
) -> None:
    reader = Reader(form)
    assert outcome(reader, usual()) == outcome(Reader(form), usual())
    changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)
    for _ in range(3):
        message = bytearray(usual(data.draw(st.sampled_from(["7", "8", "", "é", "77"]))))
        for position, value in data.draw(changes):
            message[position % len(message)] = value
        assert outcome(reader, bytes(message)) == outcome(Reader(form), bytes(message))


@EVERY_FORM
@pytest.mark.parametrize(
    "more",
    [
        b"\x0a\x01x",  # the first field again
        b"\x1a\x00",  # a field of a message without anything in it
        b"\x3a\x04abcd",  # elements again
        b"\xa2\x06\x01x",  # a field that nobody knows, whose tag has two bytes
        b"\x98\x06\x01",
        b"\x0b\x0c",  # a group
        b"\xff",
    ],
)
def test_what_no_library_writes_is_read_as_a_whole(form: Form[Any, Any], usual: Message, more: bytes) -> None:
    reader, message = Reader(form), usual()
    for whole in (message + more, more + message, message + more):
        assert outcome(reader, whole) == outcome(Reader(form), whole)


@EVERY_FORM
def test_an_id_is_text(form: Form[Any, Any], usual: Message) -> None:
    reader, message = Reader(form), usual()
    outcome(reader, message)
    assert message.count(b"\x017") == 1
    assert "got bytes that are none" in str(outcome(reader, message.replace(b"\x017", b"\x01\xff")))


def test_elements_of_several_arrays_are_not_mixed_up() -> None:
    message = solver_pb2.SolveRequest(problem="darcy")
    for name in ("a", "b"):
        message.fields[name].CopyFrom(solver_pb2.Tensor(dtype="float32", shape=[1], data=name.encode() * 4))
    form = SOLVE_FORM._replace(said=lambda whole: list(whole.fields))
    reader = Reader(form)
    for _ in range(2):
        wanted = read(reader, message.SerializeToString())
        assert [name.encode() * 4 for name in wanted.said()] == wanted.elements


@EVERY_FORM
def test_little_is_remembered(form: Form[Any, Any], usual: Message) -> None:
    reader = Reader(form)
    model = {"model" if form is SOLVE_FORM else "model_version": "x" * MOST_BYTES}
    outcome(reader, usual(**model))
    assert not reader._known
    for length in range(MOST_KNOWN + 10):
        outcome(reader, usual("7" * length))
    assert len(reader._known) == MOST_KNOWN

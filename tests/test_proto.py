"""The wire contracts: text that compiles, says what the contract says, and is what others speak."""

import importlib.resources
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc_tools import protoc
from tritonclient.grpc import model_config_pb2, service_pb2

from service.pb import generate, inference_pb2

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    target = tmp_path_factory.mktemp("proto") / "solver.binpb"
    include = importlib.resources.files("grpc_tools") / "_proto"
    arguments = [f"--proto_path={PROTO}", f"--proto_path={include}", "--include_source_info"]
    assert protoc.main(["protoc", *arguments, f"--descriptor_set_out={target}", "mno/v1/solver.proto"]) == 0
    return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file[0]


def test_generates_python(tmp_path: Path) -> None:
    arguments = [f"--proto_path={PROTO}", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    assert protoc.main(["protoc", *arguments, "mno/v1/solver.proto"]) == 0
    generated = sorted(path.name for path in (tmp_path / "mno/v1").iterdir())
    assert generated == ["solver_pb2.py", "solver_pb2_grpc.py"]
    for path in (tmp_path / "mno/v1").iterdir():
        compile(path.read_text(), path.name, "exec")


def test_service_is_the_contracts(compiled: descriptor_pb2.FileDescriptorProto) -> None:
    assert compiled.package == "mno.v1"
    (service,) = compiled.service
    assert service.name == "Solver"
    methods = {
        method.name: (
            f"{'stream ' * method.client_streaming}{method.input_type.rpartition('.')[2]}",
            f"{'stream ' * method.server_streaming}{method.output_type.rpartition('.')[2]}",
        )
        for method in service.method
    }
    assert methods == {
        "Solve": ("SolveRequest", "SolveResponse"),
        "SolveStream": ("stream SolveRequest", "stream SolveResponse"),
        "Rollout": ("RolloutRequest", "stream Frame"),
        "VectorJacobianProduct": ("VjpRequest", "VjpResponse"),
        "JacobianVectorProduct": ("JvpRequest", "JvpResponse"),
        "Quantities": ("QuantitiesRequest", "QuantitiesResponse"),
    }


def test_arrays_are_raw_bytes(compiled: descriptor_pb2.FileDescriptorProto) -> None:
    (tensor,) = [message for message in compiled.message_type if message.name == "Tensor"]
    kinds = descriptor_pb2.FieldDescriptorProto
    assert [(field.name, field.type) for field in tensor.field] == [
        ("dtype", kinds.TYPE_STRING),
        ("shape", kinds.TYPE_INT64),
        ("data", kinds.TYPE_BYTES),
    ]


def test_numbers_have_no_gaps(compiled: descriptor_pb2.FileDescriptorProto) -> None:
    for message in compiled.message_type:
        numbers = sorted(field.number for field in message.field)
        assert numbers == list(range(1, len(numbers) + 1)), message.name


def test_enums_begin_with_unspecified(compiled: descriptor_pb2.FileDescriptorProto) -> None:
    for enum in compiled.enum_type:
        assert enum.value[0].name.endswith("_UNSPECIFIED")
        prefix = enum.value[0].name.removesuffix("UNSPECIFIED")
        assert all(value.name.startswith(prefix) for value in enum.value), enum.name


def test_nothing_here_is_imported() -> None:
    assert not list(PROTO.rglob("*.py"))
    assert not any(name == "proto" or name.startswith("proto.") for name in sys.modules)


def test_the_committed_modules_are_what_protoc_makes() -> None:
    assert generate.main(["--check"]) == 0


def test_a_stale_module_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generate, "HEAD", "# another head")
    assert generate.main(["--check"]) == 1
    assert "solver_pb2.py" in capsys.readouterr().out


# --- the Open Inference Protocol: those who made Triton's client wrote theirs without us


def theirs(name: str) -> Descriptor:
    messages = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    found: Descriptor = messages[name]
    return found


def all_messages(messages: Any) -> list[Descriptor]:
    return [each for message in messages for each in (message, *all_messages(message.nested_types))]


OURS = {
    each.full_name: each for each in all_messages(inference_pb2.DESCRIPTOR.message_types_by_name.values())
}


def form(field: FieldDescriptor) -> tuple[Any, ...]:
    """What a field is on the wire and in JSON."""
    oneof = field.containing_oneof.name if field.containing_oneof else None
    message = field.message_type.full_name if field.message_type else None
    return field.number, field.type, field.is_repeated, message, oneof


def same_fields(ours: Descriptor, other: Descriptor) -> None:
    for field in ours.fields:
        assert field.name in other.fields_by_name, f"{ours.full_name}.{field.name} is nobody's"
        assert form(field) == form(other.fields_by_name[field.name]), f"{ours.full_name}.{field.name}"
    for name, nested in ours.nested_types_by_name.items():
        same_fields(nested, other.nested_types_by_name[name])
    for name, values in ours.enum_types_by_name.items():
        same_values(values, other.enum_types_by_name[name])


def same_values(ours: Any, other: Any) -> None:
    assert {v.name: v.number for v in ours.values} == {v.name: v.number for v in other.values}


def test_inference_messages_are_the_protocols() -> None:
    for name, message in inference_pb2.DESCRIPTOR.message_types_by_name.items():
        same_fields(message, theirs(name))
    same_values(
        inference_pb2.DESCRIPTOR.enum_types_by_name["DataType"],
        model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"],
    )


def test_another_number_would_be_found() -> None:
    # the check itself: the request of one call has other fields than that of another
    with pytest.raises(AssertionError, match="ModelInferRequest"):
        same_fields(OURS["inference.ModelInferRequest"], theirs("ModelInferResponse"))


def test_inference_calls_are_the_protocols() -> None:
    service = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    other = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    missing = {method.name for method in other.methods} - {method.name for method in service.methods}
    # shared memory is not served
    assert all("SharedMemory" in name for name in missing)
    for method in service.methods:
        twin = other.methods_by_name[method.name]
        assert method.input_type.full_name == twin.input_type.full_name
        assert method.output_type.full_name == twin.output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (
            twin.client_streaming,
            twin.server_streaming,
        )


def test_whole_messages_pass_between_them() -> None:
    ours = inference_pb2.ModelInferRequest(model_name="darcy", id="1", raw_input_contents=[b"abc"])
    ours.parameters["priority"].uint64_param = 2
    ours.inputs.add(name="permeability", datatype="FP32", shape=[1, -1])
    read = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert inference_pb2.ModelInferRequest.FromString(read.SerializeToString()) == ours

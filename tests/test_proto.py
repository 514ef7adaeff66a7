"""The wire contract: text that compiles and says what the contract says."""

import importlib.resources
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

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

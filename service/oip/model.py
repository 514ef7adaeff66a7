"""A version as a model of the Open Inference Protocol: its tensors, and a configuration that tools read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from problems import EVOLUTION_PROBLEMS, PROBLEMS, FieldSpec
from service.validate import AT_REST
from service.versions.served import ServedVersion

__all__ = ["ModelMetadata", "TensorSpec", "describe", "model_config"]

PLATFORM: Final = "mno"
# any length
ANY: Final = -1


@final
@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model.

    Attributes:
        dims: lengths of the axes of one sample; -1: any.
        optional: it may be left out.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes of a batch."""
        return (ANY, *self.dims)


@final
@dataclass(frozen=True)
class ModelMetadata:
    """What a client has to know to ask a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def document(self) -> dict[str, Any]:
        """As the protocol writes it."""
        return {
            "name": self.name,
            "versions": list(self.versions),
            "platform": self.platform,
            "inputs": [_metadata(each) for each in self.inputs],
            "outputs": [_metadata(each) for each in self.outputs],
        }


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def describe(version: ServedVersion, versions: Iterable[str]) -> ModelMetadata:
    """The tensors of a version, which is one of ``versions`` of its model."""
    problem = PROBLEMS[version.problem]
    grid = version.grids[0] if len(version.grids) == 1 else (ANY, ANY)
    evolves = version.problem in EVOLUTION_PROBLEMS
    outputs = [
        TensorSpec(spec.name, "FP32", (version.frames, *grid) if evolves else grid)
        for spec in problem.outputs
    ]
    bounds = () if evolves else ("error_upper", "error_l2_estimate")
    return ModelMetadata(
        version.name,
        tuple(versions),
        PLATFORM,
        tuple(_input(spec, grid, evolves=evolves) for spec in problem.inputs),
        (
            *outputs,
            *(TensorSpec(name, "FP64", (1,)) for name in bounds),
            TensorSpec("in_distribution", "BOOL", (1,)),
        ),
    )


def _input(spec: FieldSpec, grid: tuple[int, int], *, evolves: bool) -> TensorSpec:
    return TensorSpec(spec.name, "FP32", grid, optional=evolves and spec.name in AT_REST)


def model_config(version: ServedVersion, versions: Sequence[int], max_batch: int) -> dict[str, Any]:
    """The configuration with the field names of Triton's ``ModelConfig``, also as its protobuf reads them."""
    metadata = describe(version, ())
    return {
        "name": version.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"specific": {"versions": list(versions)}},
        "max_batch_size": max_batch,
        "input": [_config(each) | {"optional": each.optional} for each in metadata.inputs],
        "output": [_config(each) for each in metadata.outputs],
        "instance_group": [{"name": version.name, "kind": "KIND_AUTO", "count": 1}],
        # batches form while the worker is busy; two levels: interactive and bulk
        "dynamic_batching": {"priority_levels": 2, "default_priority_level": 1},
        "parameters": {
            name: {"string_value": value} for name, value in _facts(version).items() if value is not None
        },
        "model_transaction_policy": {"decoupled": False},
    }


def _config(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.dims)}


def _facts(version: ServedVersion) -> Mapping[str, str | None]:
    return {
        "problem": version.problem,
        "scheme": version.scheme,
        "grids": ",".join(f"{ny}x{nx}" for ny, nx in version.grids),
        "walls": version.walls,
        "frame_interval": None if version.frame_interval is None else repr(version.frame_interval),
    }

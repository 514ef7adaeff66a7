"""A surrogate as a graph that is open in its batch and its grid, and the file of that graph."""

import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor, nn
from torch._export.serde.serialize import SerializeError
from torch.export import ExportedProgram

from model_store.export import operations  # noqa: F401
from model_store.export.errors import CannotExport
from model_store.export.forms import with_forms
from model_store.export.signature import Signature, samples
from model_store.store import LoadedVersion
from operators import EvolutionSurrogate

# where the file of a program holds what is known of it
METADATA: Final = "mno.json"
# kind of an operator -> why PyTorch's format has no place for it
NOT_SAVABLE: Final = {"shallow_water_mno": "PyTorch cannot save its loop over steps with open sizes"}


@final
class _Steady(nn.Module):
    """A surrogate without the axis of its one channel."""

    def __init__(self, surrogate: nn.Module, extent: tuple[float, float]) -> None:
        super().__init__()
        self.surrogate, self.extent = surrogate, extent

    def forward(self, field: Tensor, source: Tensor) -> Tensor:
        solution: Tensor = self.surrogate(field[:, None], source, self.extent)
        return solution[:, 0]


@final
class _Evolution(nn.Module):
    """An evolution surrogate; one that needs no history is given its state without the axis of time."""

    def __init__(self, surrogate: nn.Module, history: int, extent: tuple[float, float]) -> None:
        super().__init__()
        self.surrogate, self.history, self.extent = surrogate, history, extent

    def forward(self, known: Tensor) -> Tensor:
        frames: Tensor = self.surrogate(known[:, None] if self.history == 1 else known, self.extent)
        return frames


def callable_of(version: LoadedVersion) -> nn.Module:
    """The surrogate of a version, with inputs and output as a file of it has them."""
    return _around(version, version.surrogate)


def _around(version: LoadedVersion, surrogate: nn.Module) -> nn.Module:
    if isinstance(version.surrogate, EvolutionSurrogate):
        return _Evolution(surrogate, version.surrogate.history, version.card.extent)
    return _Steady(surrogate, version.card.extent)


def trace(
    version: LoadedVersion, scanning: AbstractContextManager[object]
) -> tuple[ExportedProgram, tuple[int, int, int]]:
    """The graph of a version, and the (batch, ny, nx) that it was traced with.

    Args:
        version: whose surrogate.
        scanning: within which the graph is made: it says in what form it has scans.

    Raises:
        CannotExport: a part of the operator cannot be traced with open sizes.
    """
    signature = Signature.of(version)
    ny = signature.sides.beyond(8)
    size = 2, ny, signature.sides.beyond(ny)
    module = _around(version, with_forms(version.surrogate)).eval()
    try:
        # with gradients on, a surrogate takes its samples together; the tracer warns of the weights that
        # forms exchange and put back
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"), scanning:
            program = torch.export.export(
                module,
                samples(version, size[0], size[1:], seed=0),
                dynamic_shapes=signature.dynamic_shapes(),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:
        raise CannotExport(
            f"expected the operator {version.card.operator.kind} of {version.reference} to be traceable with "
            f"open sizes, got {type(error).__name__}: {_first_line(error)}; serve it with `mno serve`"
        ) from error
    return program, size


def expect_savable(version: LoadedVersion) -> None:
    """See that a file of a program can hold the operator, before minutes are spent on tracing it.

    Raises:
        CannotExport: it cannot.
    """
    kind = version.card.operator.kind
    if kind in NOT_SAVABLE:
        raise CannotExport(
            f"expected an operator that a program can hold, got {kind} of {version.reference}: "
            f"{NOT_SAVABLE[kind]}; export it as ONNX: OUT.onnx"
        )


def save(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program with what is known of it.

    Raises:
        CannotExport: PyTorch's format has no place for a part of it.
    """
    try:
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: json.dumps(dict(metadata), indent=1)})
    except SerializeError as error:
        raise CannotExport(
            f"expected a program that PyTorch can save, got {_first_line(error)}; export it as ONNX: OUT.onnx"
        ) from error


def load(path: Path) -> tuple[Callable[..., Tensor], dict[str, str]]:
    """The program of a file and what is known of it; importing this module made its operations known."""
    extra = {METADATA: ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra[METADATA])


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")

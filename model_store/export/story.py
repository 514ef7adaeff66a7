"""The story of an export: trace the surrogate, write the file, and let it go only if it computes the same."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from model_store.export import program
from model_store.export.check import check, sizes_beside
from model_store.export.metadata import describe
from model_store.export.operations import ScansByLines
from model_store.export.signature import Signature
from model_store.store import LoadedVersion


def write(version: LoadedVersion, out: Path) -> str:
    """Write a version; the suffix says in which form. Tells how well the file agrees.

    Raises:
        CannotExport: a part of the operator has no form in such a file.
        Disagrees: the file does not compute what the version computes.
    """
    signature = Signature.of(version)
    if out.suffix != ".onnx":
        program.expect_savable(version)
    scanning = ScansByLines() if out.suffix == ".onnx" else nullcontext()
    traced, size = program.trace(version, scanning)
    sizes = sizes_beside(size, signature.sides)
    with whole_or_absent(out) as temporary:
        file = _written(traced, version, temporary)
        differences = check(file, version, sizes)
    found = ", ".join(
        f"{difference:.1e} on {batch} x {ny} x {nx}"
        for difference, (batch, ny, nx) in zip(differences, sizes, strict=True)
    )
    return f"differs from PyTorch by {found} (relative L2)"


def _written(traced: ExportedProgram, version: LoadedVersion, path: Path) -> Callable[..., Tensor]:
    """Write the graph, and read it as its users will."""
    if path.suffix != ".onnx":
        program.save(traced, path, describe(version, "torch.export"))
        return program.load(path)[0]
    # needs the extra
    from model_store.export import onnx_model
    from model_store.export.functions import OPSET

    described = describe(version, f"onnx opset {OPSET}")
    onnx_model.save(onnx_model.translate(traced, Signature.of(version), described), path)
    return onnx_model.load(path)


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` that takes its place when the block ends well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

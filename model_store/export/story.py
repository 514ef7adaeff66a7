"""The story of an export: trace the surrogate, write the file, and let it go only if it computes the same."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from model_store.export import program
from model_store.export.check import check, sizes_beside
from model_store.export.metadata import describe
from model_store.export.signature import Signature
from model_store.store import LoadedVersion


def write(version: LoadedVersion, out: Path) -> str:
    """Write a version; the suffix says in which form. Tells how well the file agrees.

    Raises:
        CannotExport: a part of the operator has no form in such a file.
        Disagrees: the file does not compute what the version computes.
    """
    traced, size = program.trace(version)
    sizes = sizes_beside(size, Signature.of(version).sides)
    with whole_or_absent(out) as temporary:
        if out.suffix == ".onnx":
            # needs the extra
            from model_store.export import onnx_model
            from model_store.export.functions import OPSET

            signature = Signature.of(version)
            model = onnx_model.translate(traced, signature, describe(version, f"onnx opset {OPSET}"))
            onnx_model.save(model, temporary)
            file = onnx_model.load(temporary)
        else:
            program.save(traced, temporary, describe(version, "torch.export"))
            file, _ = program.load(temporary)
        differences = check(file, version, sizes)
    found = ", ".join(
        f"{difference:.1e} on {batch} x {ny} x {nx}"
        for difference, (batch, ny, nx) in zip(differences, sizes, strict=True)
    )
    return f"differs from PyTorch by {found} (relative L2)"


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` that takes its place when the block ends well, and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

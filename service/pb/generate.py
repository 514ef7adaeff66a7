"""Makes the modules beside this one from `proto/`; needs the development extras.

::

    python -m service.pb.generate [--check]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["generate", "main"]

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
# a file of proto/ -> the module
MODULES: Final = {"mno/v1/solver": "solver_pb2", "inference/grpc_service": "inference_pb2"}
HEAD: Final = "# ruff: noqa\n# fmt: off\n"
# what protoc writes for mypy is not strict
TYPES_HEAD: Final = HEAD + "# mypy: disable-error-code=type-arg\n"
SHARED_POOL: Final = (
    ("from google.protobuf import descriptor_pool as _descriptor_pool\n", ""),
    (
        "from google.protobuf.internal import builder as _builder\n",
        "from google.protobuf.internal import builder as _builder\n"
        "from service.pb.pool import POOL as _POOL\n",
    ),
    ("_descriptor_pool.Default()", "_POOL"),
)


def generate() -> dict[str, str]:
    """The text of each generated file by name.

    Raises:
        RuntimeError: the compiler or its version is another than the one that this was written for.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory() as folder:
        sources = [f"{path}.proto" for path in MODULES]
        arguments = [f"--proto_path={ROOT / 'proto'}", f"--python_out={folder}", f"--pyi_out={folder}"]
        if protoc.main(["protoc", *arguments, *sources]) != 0:
            raise RuntimeError("protoc failed; it says why above")
        texts = {}
        for path, module in MODULES.items():
            compiled = Path(folder, f"{path}_pb2.py")
            texts[f"{module}.py"] = HEAD + _in_own_pool(compiled.read_text("utf-8"))
            texts[f"{module}.pyi"] = TYPES_HEAD + compiled.with_suffix(".pyi").read_text("utf-8")
        return texts


def _in_own_pool(text: str) -> str:
    for old, new in SHARED_POOL:
        if old not in text:
            raise RuntimeError(f"expected {old!r} in what protoc writes; adapt SHARED_POOL to its version")
        text = text.replace(old, new)
    return text


def main(arguments: list[str]) -> int:
    """Write the files; with ``--check``, say which are not what they should be."""
    stale = [name for name, text in generate().items() if _on_disk(name) != text]
    if arguments != ["--check"]:
        for name, text in generate().items():
            Path(HERE, name).write_text(text, "utf-8")
        return 0
    print(f"run python -m service.pb.generate: {', '.join(stale)} are stale" if stale else "as generated")
    return 1 if stale else 0


def _on_disk(name: str) -> str | None:
    path = Path(HERE, name)
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

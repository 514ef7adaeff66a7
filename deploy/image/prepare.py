"""Compile what would otherwise be compiled when a container starts: run once, by the image's own Python.

The folders are those that ``NUMBA_CACHE_DIR``, ``MPLCONFIGDIR`` and, for CUDA, ``TRITON_CACHE_DIR`` name.
"""

import contextlib
import importlib.util
import os
import re
import subprocess
import tempfile
from pathlib import Path

# what Triton's glue to the driver is called in its cache
GLUE = "cuda_utils"


def compile_solvers(cache: Path) -> int:
    """The reference solvers of all problems; returns how many functions the cache holds then."""
    from service.workers.numerics import warm_up

    warm_up()
    return len(list(cache.rglob("*.nbi")))


def find_fonts() -> None:
    """The table of fonts, which the first picture would wait for."""
    import matplotlib.font_manager

    matplotlib.font_manager.fontManager.findfont("sans")


def compile_glue(cache: Path) -> int:
    """Triton's glue to CUDA's driver, which needs a C compiler; returns how many there are then.

    It is linked against a library that has the driver's name and empty functions: the real one comes with the
    machine that runs the image.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        _make_empty_driver(Path(folder, "libcuda.so.1"))
        knobs.nvidia.libcuda_path = folder
        from triton.backends.nvidia.driver import CudaUtils

        # it is in the cache before it is loaded, which fails: there is no driver here
        with contextlib.suppress(ImportError):
            CudaUtils()
    return len(list(cache.rglob(f"{GLUE}*.so")))


def _make_empty_driver(library: Path) -> None:
    source = Path(str(importlib.util.find_spec("triton").origin)).parent / "backends/nvidia/driver.c"  # type: ignore[union-attr]
    # the linker leaves a library out whose functions nobody calls
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", source.read_text("utf-8"))))
    code = "".join(f"void {name}(void) {{}}\n" for name in names)
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-x", "c", "-", "-o", str(library)]
    subprocess.run(["gcc", *options], input=code, text=True, check=True)


def main() -> None:
    """Compile, and say what there is."""
    import torch

    functions = compile_solvers(Path(os.environ["NUMBA_CACHE_DIR"]))
    find_fonts()
    if not functions:
        raise SystemExit(f"expected compiled solvers in {os.environ['NUMBA_CACHE_DIR']}, found none")
    print(f"{functions} functions of the solvers are compiled")
    if torch.version.cuda is not None and not compile_glue(Path(os.environ["TRITON_CACHE_DIR"])):
        raise SystemExit(f"expected Triton's {GLUE} in {os.environ['TRITON_CACHE_DIR']}, found none")


if __name__ == "__main__":
    main()

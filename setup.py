"""Builds the scan kernel beside the Python files; all else about the distribution is in pyproject.toml.

The kernel needs any C++17 compiler and nothing else. Without one the install goes on, and the operators use
their (much slower) torch form.
"""

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNEL = Path("operators/scan/kernel")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
# each file has the flags of its instruction set; the library chooses among them when it runs
INSTRUCTION_SETS = {
    "avx2.cpp": ["-mavx2", "-mfma"],
    "avx512.cpp": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512bw",
        "-mavx512vl",
        "-mfma",
        "-mprefer-vector-width=512",
    ],
}


def compilers() -> Iterator[list[str]]:
    """Yields the command of $CXX, or those of the usual compilers that are on the path."""
    if os.environ.get("CXX"):
        yield os.environ["CXX"].split()
        return
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            yield [name]


def compile_kernel(compiler: list[str], target: Path) -> None:
    """Compiles the sources one by one and links them into ``target``."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sources = [
        source for source in sorted(KERNEL.glob("*.cpp")) if x86 or source.name not in INSTRUCTION_SETS
    ]
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]

        def compile_one(source: Path, to: Path) -> None:
            flags = FLAGS + INSTRUCTION_SETS.get(source.name, [])
            subprocess.run([*compiler, *flags, "-c", str(source), "-o", str(to)], check=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, objects))
        target.parent.mkdir(parents=True, exist_ok=True)
        # a running process may have the old library mapped: replace the file, do not write into it
        fresh = target.with_suffix(".new")
        subprocess.run([*compiler, "-shared", "-pthread", *map(str, objects), "-o", str(fresh)], check=True)
        fresh.replace(target)


class BuildKernel(build_ext):
    """Builds the kernel as a plain shared library, which is loaded with ctypes and knows no Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        problem = "no C++ compiler found ($CXX, c++, g++, clang++)"
        for compiler in compilers():
            try:
                compile_kernel(compiler, target)
            except (OSError, subprocess.CalledProcessError) as error:
                problem = str(error)
            else:
                return
        print(
            f"mno: the scan kernel was not built, its slower torch form will be used: {problem}", flush=True
        )


class PlatformWheel(bdist_wheel):
    """The library is bound to a platform, but to no version of Python and none of torch."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("operators.scan._native", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": PlatformWheel},
)

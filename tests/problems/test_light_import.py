"""Describing and validating fields needs neither compilers nor solvers."""

import subprocess
import sys


def test_problems_load_neither_numba_nor_solvers() -> None:
    program = (
        "import sys, problems; heavy = {'numba', 'torch', 'scipy.sparse', 'scipy.special', 'scipy.fft'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"

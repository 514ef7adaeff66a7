"""How a worker process starts. This module imports no numerical library: their thread pools come after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from types import MappingProxyType
from typing import Final

__all__ = ["ONE_THREAD", "start_worker"]

# there is a process per core already; read by the BLAS when NumPy is first imported
ONE_THREAD: Final[Mapping[str, str]] = MappingProxyType(
    {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
)


def start_worker() -> None:
    """Compute on one thread, and end when the parent is killed (a worker would wait for tasks for ever)."""
    os.environ.update(ONE_THREAD)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)

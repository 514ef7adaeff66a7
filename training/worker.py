"""How a worker process starts. This module imports no numerical library: their thread pools come after it."""

import os
import threading
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess


def start_worker() -> None:
    """Compute on one thread, and end when the parent is killed (a worker would wait for tasks for ever)."""
    # there is a process per core already; read by the BLAS when NumPy is first imported
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)

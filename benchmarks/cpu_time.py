"""CPU times of calls."""

import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of the process during one call [s]."""
    start = time.process_time()
    work()
    return time.process_time() - start

"""What a process holds in memory; the supervisor asks its workers, for ``/metrics``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["held_memory"]


def held_memory() -> dict[str, int]:
    """Resident in RAM, and of the GPU's now and at most [B], by the names of ``WorkerMetrics.memory``."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    held = {"resident": pages * os.sysconf("SC_PAGESIZE")}
    # whoever has not imported torch holds nothing there, and need not import it for this
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        held["device"] = torch.cuda.memory_reserved()
        held["device_peak"] = torch.cuda.max_memory_reserved()
    return held

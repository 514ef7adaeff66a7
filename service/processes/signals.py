"""Signals of a service of several processes: only its supervisor is stopped, and stops the others."""

from __future__ import annotations

import signal
from typing import Final

__all__ = ["DRAIN", "ignore_stops"]

# what the zygote ends its children with
DRAIN: Final = signal.SIGUSR1


def ignore_stops() -> None:
    """Go on when a terminal or a manager of services stops a whole group of processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

"""SIGTERM as SIGINT: whoever stops a job by either finds the same state, and gets the same exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["sigterm_interrupts"]


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what SIGINT does; outside the main thread signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        # None: the handler was not set from Python, and cannot be set back
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    # a shell starts what runs in its background with SIGINT ignored
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        raise KeyboardInterrupt

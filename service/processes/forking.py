"""The zygote's own process: imports everything once, and forks children in milliseconds.

``python -m service.processes.forking FD`` imports torch, the operators and the model store, computes nothing,
has one thread, and never touches a device. Its children share what it has read, copy on write. Over FD (see
``service.workers.lane``) it says ``{"ready": true}``, and hears::

    {"fork": 7, "kind": "model", "spec": {...}}  + 1 descriptor, the child's end of its control socket

whereupon it says ``{"forked": 7, "pid": 4711}`` + 1 descriptor, a pidfd of the child, or
``{"fork": 7, "failed": "why"}``; and ``{"exited": 4711, "status": 0}`` when that child ended (minus a
signal's number, if one ended it). When FD ends it has its children answer what they have, and goes with all
of them; when it dies, so do they.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from service.processes.signals import DRAIN, ignore_stops
from service.processes.zygote import Kind
from service.workers.lane import BadMessage, BlockingLane, LaneClosed
from service.workers.lane_server import Watch

__all__ = ["KINDS", "main"]

log = logging.getLogger("mno.service")

# modules with a function main(control, spec) that returns an exit status
KINDS: Final[Mapping[Kind, str]] = {
    "model": "service.workers.worker_process",
    "steward": "service.processes.steward",
}
Main = Callable[[socket.socket, Mapping[str, Any]], int]
# how long children may take to answer what they have [s]
GRACE_SECONDS: Final = 30.0
# prctl(2): the signal that a process gets when its parent ends, and the name under which `top` shows it
PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15


def main(control: socket.socket) -> int:
    """Fork until told to end; returns the exit status."""
    # what is imported stays: looking for garbage in it costs a tenth of the time
    gc.disable()
    mains: dict[str, Main] = {kind: importlib.import_module(module).main for kind, module in KINDS.items()}
    # a garbage collection in a child would write to pages that it shares
    gc.collect()
    gc.freeze()
    gc.enable()
    ignore_stops()
    forker = _Forker(BlockingLane(control), mains)
    forker.run()
    return 0


@final
class _Forker:
    def __init__(self, lane: BlockingLane, mains: Mapping[str, Main]) -> None:
        self._lane = lane
        self._mains = mains
        self._children: set[int] = set()
        self._watch = Watch()

    def run(self) -> None:
        """Fork, and report, until the lane ends."""
        self._watch.add(self._lane, self._hear)
        signal.signal(signal.SIGCHLD, lambda *_: self._watch.order(self._reap))
        self._lane.send({"ready": True})
        self._watch.run()
        self._end_children()

    def _hear(self) -> None:
        try:
            order, fds = self._lane.receive()
        except BadMessage as error:
            log.error("an unknown order: %s", error)
        except LaneClosed:
            self._watch.stop()
        else:
            try:
                self._fork(order["fork"], order["kind"], order["spec"], *fds)
            except (OSError, KeyError, TypeError) as error:
                # the other children live on, and a fork may be possible later
                log.exception("no child can be forked")
                self._say({"fork": order.get("fork"), "failed": f"{type(error).__name__}: {error}"})
            finally:
                for fd in fds:
                    os.close(fd)

    def _fork(self, number: int, kind: Kind, spec: Mapping[str, Any], fd: int) -> None:
        run = self._mains[kind]

        def be() -> int:
            name: str = spec.get("model") or spec.get("factory") or kind
            ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())
            self._watch.close()
            self._lane.close()
            return run(socket.socket(fileno=fd), spec)

        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live(parent, be)
        self._children.add(pid)
        try:
            # numbers are used again: this means the child also when it has ended
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        try:
            self._say({"forked": number, "pid": pid}, pidfd)
        finally:
            os.close(pidfd)

    def _reap(self) -> None:
        # one signal may stand for several children
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._children.remove(pid)
                self._say({"exited": pid, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, report: Mapping[str, Any], *fds: int) -> None:
        # who is gone is noticed where orders are heard
        with contextlib.suppress(LaneClosed):
            self._lane.send(report, fds)

    def _end_children(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        end = time.monotonic() + GRACE_SECONDS
        for pid in self._children:
            os.kill(pid, DRAIN)
        self._reap()
        while self._children and (left := end - time.monotonic()) > 0:
            signal.sigtimedwait({signal.SIGCHLD}, left)
            self._reap()
        # those that are left end with this process


def _live(parent: int, run: Callable[[], int]) -> None:
    """Be a child of ``parent``: run, and end the process."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # it may have ended before it was asked to take this process along
        if os.getppid() == parent:
            status = run()
    except LaneClosed:
        # who wanted this process is gone
        status = 0
    except BaseException:  # the edge of the process, whose parent would otherwise go on here a second time
        log.exception("a process broke")
    finally:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    status = main(socket.socket(fileno=int(sys.argv[1])))
    logging.shutdown()
    # to take apart what was imported would only take time
    os._exit(status)

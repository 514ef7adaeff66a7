"""CPU time and memory of a process with all that it has started, from ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

__all__ = ["ProcessTree", "Stat", "command_line", "parse_stat", "pss_bytes"]

_TICKS = os.sysconf("SC_CLK_TCK")


@final
class Stat:
    """Of ``/proc/PID/stat`` what matters here."""

    __slots__ = ("cpu", "parent", "session", "start")

    def __init__(self, parent: int, session: int, start: int, cpu: float) -> None:
        self.parent = parent
        self.session = session
        self.start = start
        self.cpu = cpu


def parse_stat(text: str) -> Stat:
    """Parent, session, start time [ticks] and CPU time with that of the children that have ended [s]."""
    # the name of the command stands in parentheses and may hold any of them
    fields = text[text.rindex(")") + 2 :].split()
    ticks = sum(int(field) for field in fields[11:15])
    return Stat(int(fields[1]), int(fields[3]), int(fields[19]), ticks / _TICKS)


def _stats() -> dict[int, Stat]:
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            try:
                found[int(entry)] = parse_stat(Path(f"/proc/{entry}/stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


@final
class ProcessTree:
    """A process, its descendants, those of its session, and those that once were."""

    def __init__(self, root: int) -> None:
        self._root = root
        # by process, its start time: numbers are given again
        self._known: dict[int, int] = {}
        self.look()

    def look(self) -> dict[int, Stat]:
        """The processes that are alive now."""
        stats = _stats()
        members = {
            pid
            for pid, stat in stats.items()
            if stat.session == self._root or self._known.get(pid) == stat.start
        } | ({self._root} & stats.keys())
        while more := {pid for pid, stat in stats.items() if stat.parent in members} - members:
            members |= more
        self._known |= {pid: stats[pid].start for pid in members}
        return {pid: stats[pid] for pid in members}

    def alive(self) -> list[int]:
        """Numbers of the processes."""
        return sorted(self.look())

    def cpu_seconds(self) -> float:
        """User and system time so far [s]."""
        return sum(stat.cpu for stat in self.look().values())

    def pss_bytes(self) -> int:
        """Memory, that which is shared divided among its sharers [B]."""
        return sum(pss_bytes(pid) for pid in self.alive())


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process [B]; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def command_line(pid: int) -> str:
    """The arguments of a process; empty where it has ended."""
    try:
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        )
    except (FileNotFoundError, ProcessLookupError):
        return ""

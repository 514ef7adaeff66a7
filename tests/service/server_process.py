"""The service as its users run it: a tree of processes, looked at from outside."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: "subprocess.Popen[str]"
    address: str
    grpc_address: str

    def tree(self) -> dict[int, str]:
        """Command lines of the process and all below it, by process id."""
        parents = dict(_parents())
        tree = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= more
        return {pid: command for pid in sorted(tree) if (command := _command(pid))}

    def named(self) -> dict[str, list[int]]:
        """Process ids by what the processes do: zygote, steward, darcy@1, numerics, front."""
        tree, found = self.tree(), dict[str, list[int]]()
        forked = set(self.forked())
        for pid, command in tree.items():
            modules = {"forking": "zygote", "numerics": "numerics", "front": "front"}
            module = re.search(r"-m service\.\w+\.(\w+)", command)
            if pid in forked:
                found.setdefault(_name(pid), []).append(pid)
            elif module and module[1] in modules:
                found.setdefault(modules[module[1]], []).append(pid)
        return found

    def forked(self) -> list[int]:
        """Process ids of what the zygote forked: the steward and the models' workers."""
        commands = self.tree()
        zygotes = {pid for pid, command in commands.items() if "service.processes.forking" in command}
        return [pid for pid, parent in _parents() if pid in commands and parent in zygotes]

    def memory(self) -> int:
        """Memory of the tree that is no file's [kB]."""
        return sum(map(_pss, self.tree()))

    def open_files(self) -> dict[str, int]:
        """Open files of the processes that last as long as the service, by what they do."""
        lasting = {name: pids[0] for name, pids in self.named().items() if pids[0] not in self.forked()}
        return {name: _files(pid) for name, pid in {**lasting, "supervisor": self.process.pid}.items()}

    def stop(self, seconds: float = 60) -> int:
        """Ask it to end; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)


@contextmanager
def running(*arguments: str, **variables: str) -> Iterator[Server]:
    """``mno serve`` on free ports, until the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MNO_")}
    # the modules beside this one can be imported by its workers
    environment |= {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{ROOT}", **variables}
    command = [sys.executable, "-m", "service", "--http-port", "0", "--grpc-port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        found = re.search(r"(https?://[\d.]+:\d+).*?grpc://([\d.]+:\d+)", ready)
        assert found, f"the service did not start: {ready!r}, exit code {process.poll()}"
        server = Server(process, found[1], found[2])
        pids = list(server.tree())
        try:
            yield server
        finally:
            pids += [pid for pid in server.tree() if pid not in pids]
            process.kill()
            process.wait()
            for pid in pids:
                _wait_until_gone(pid)


def _wait_until_gone(pid: int) -> None:
    """Nothing outlives its supervisor: whoever does fails the test at its time limit."""
    while _command(pid):
        os.sched_yield()


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(entry.name), int(fields[1])


def _command(pid: int) -> str:
    """The command line; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _name(pid: int) -> str:
    """The name that ``top`` shows, at most 15 characters."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    # files are shared with whoever else runs on this machine, and come and go with them
    return sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+)", text, re.MULTILINE)))


def _files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0

"""``mno solve --engine ray``: actors and drivers that are killed cost time and nothing else.

``BULK_FIELDS=100000 pytest -s -m slow -o timeout=3600 tests/bulk/test_killed_job.py`` is the acceptance test
of issue 6, and says what it saw.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mno

FIELDS = int(os.environ.get("BULK_FIELDS", "6400"))
CHUNKS = 50
# between two kills: enough to see that work goes on, so few that the work is not over where they come late
FEW = 2
BATCH = 16


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Distinct fields in PDEBench's layout."""
    values = np.exp(np.random.default_rng(0).normal(size=(FIELDS, 16, 16))).astype(np.float32)
    path = tmp_path / "fields.h5"
    with h5py.File(path, "w") as file:
        file["nu"] = values
    return path


@contextmanager
def driver(arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``mno solve`` in a process of its own, which is killed at the end of the block if it is not done."""
    with (
        log.open("ab") as said,
        subprocess.Popen(
            [sys.executable, "-m", "mno", "solve", *arguments],
            cwd=Path(mno.__file__).parent,
            stdout=said,
            stderr=said,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], Any]) -> None:
    while not ready() and process.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
    assert process.returncode is None, "it ended too early to be disturbed"


def actors(token: str) -> list[int]:
    """Processes of the cluster in which an actor solves fields."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            is_actor = (process / "cmdline").read_bytes().startswith(b"ray::_Remote")
            if is_actor and token.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.mark.slow
def test_killed_actors_and_drivers_change_no_bit(
    fields: Path, store_url: str, cluster: Any, token: str, tmp_path: Path
) -> None:
    chunk = -(-FIELDS // CHUNKS // BATCH) * BATCH
    options = ["--store", store_url, "--model", "darcy@1", "--method", "solver", "--device", "cpu"]
    options += ["--batch-size", str(BATCH), "--chunk-size", str(chunk)]
    output, log = tmp_path / "ray.h5", tmp_path / "log"
    command = ["darcy", str(fields), str(output), *options, "--engine", "ray", "--address", cluster.address]

    def done() -> int:
        return len(list(tmp_path.glob("ray.h5.partial/*.npz")))

    began = time.monotonic()
    with driver(command, log) as process:
        wait_for(process, lambda: done() >= FEW)
        victims = actors(token)
        assert victims
        os.kill(victims[0], signal.SIGKILL)
        print(f"\n{time.monotonic() - began:.0f} s: killed actor {victims[0]} with {done()} chunks done")
        before = done()
        wait_for(process, lambda: done() >= before + FEW)
        process.kill()
    kept = done()
    print(f"{time.monotonic() - began:.0f} s: killed the driver with {kept} of {CHUNKS} chunks done")
    assert not output.exists()
    assert FEW < kept < CHUNKS
    with driver(command, log) as process:
        assert process.wait() == 0, log.read_text()
    print(f"{time.monotonic() - began:.0f} s: {log.read_text().splitlines()[-1]}")
    local = tmp_path / "local.h5"
    with driver(["darcy", str(fields), str(local), *options, "--workers", "2"], log) as process:
        assert process.wait() == 0, log.read_text()
    print(f"{time.monotonic() - began:.0f} s: {log.read_text().splitlines()[-1]}")
    assert output.read_bytes() == local.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"fields.h5", "ray.h5", "local.h5", "log"}
    _check_some(fields, output, options, tmp_path)


def _check_some(fields: Path, output: Path, options: Sequence[str], folder: Path) -> None:
    """Some fields solved by themselves have the same answers, so none is missing, doubled or elsewhere."""
    with h5py.File(fields) as given, h5py.File(output) as found:
        values, answers = given["nu"][:], found["tensor"][:, 0]
        assert np.array_equal(found["nu"][:], values)
        assert np.isfinite(found["error_upper"][:]).all()
    assert len(np.unique(answers.reshape(FIELDS, -1), axis=0)) == FIELDS
    some = np.sort(np.random.default_rng(1).choice(FIELDS, 50, replace=False))
    np.save(folder / "some.npy", values[some].transpose(0, 2, 1))
    with driver(
        ["darcy", str(folder / "some.npy"), str(folder / "alone.npy"), *options], folder / "log"
    ) as process:
        assert process.wait() == 0
    assert np.array_equal(np.load(folder / "alone.npy"), answers[some].transpose(0, 2, 1))

"""Several processes train like one: with torchrun, as a user starts them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from operators import surrogate_from_config
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import parse_run
from training.journal import read_journal
from training.ranks import ALONE, Ranks, UnevenBatch, joined_ranks
from training.run import make_task

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(
    file: Path, *arguments: str, nodes: Sequence[str] = ("--standalone", "--nproc-per-node=2")
) -> list[str]:
    """The command that starts two processes, or with ``nodes`` those of one of several nodes."""
    launch = [sys.executable, "-m", "torch.distributed.run", *nodes]
    return [*launch, "-m", "mno", "train", str(file), *arguments]


def two_nodes(file: Path) -> list[list[str]]:
    """The commands of two nodes with a process each; the first keeps the rendezvous."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    common = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", endpoint]
    places = [[f"--rdzv-conf=is_host={host}", "--local-addr=127.0.0.1"] for host in ("true", "false")]
    return [torchrun(file, nodes=[*common, *place]) for place in places]


def write(text: str, directory: Path, name: str, steps: int = 20) -> Path:
    """The run's file with so many steps, and with a directory of its own."""
    changed = re.sub(r"^steps = (8|6|12)$", f"steps = {steps}", text, count=1, flags=re.MULTILINE)
    assert changed != text
    file = directory / f"{name}.toml"
    file.write_text(changed.replace("/runs/", f"/{name}/"))
    return file


def carry_out(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=800)


def checkpoint_path(file: Path) -> Path:
    return parse_run(file.read_text()).checkpoint_path


def losses(file: Path) -> list[float]:
    journal = read_journal(checkpoint_path(file).parent / "log.jsonl")
    return [line["loss"] for line in journal if "loss" in line]


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.step == expected.step
    for group in ("weights", "average"):
        for name, tensor in getattr(expected, group).items():
            torch.testing.assert_close(getattr(found, group)[name], tensor, rtol=0, atol=1e-6)


@pytest.fixture
def even_text(evolution_text: str) -> str:
    return evolution_text.replace("batch_size = 3", "batch_size = 2")


def normalized(text: str) -> str:
    """The run of an operator whose normalizers come from all data, of which each process reads a share."""
    operator = """[operator]
kind = "autoregressive"
fields = 3
walls = "outflow"
reference_spacing = 0.3125
frames = 2
channels = 8
"""
    text = re.sub(r"\[operator\]\n.*?\n\n", f"{operator}\n", text, count=1, flags=re.DOTALL)
    return text.replace("[sequence]\n", "[sequence]\nnormalize = true\n")


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["steady", "evolution"])
def test_two_processes_take_the_steps_of_one(
    smoke_text: str, even_text: str, tmp_path: Path, problem: str
) -> None:
    text = {"steady": smoke_text, "evolution": normalized(even_text)}[problem]
    alone, together = (write(text, tmp_path, name) for name in ("alone", "together"))
    assert carry_out([sys.executable, "-m", "mno", "train", str(alone)]).returncode == 0
    done = carry_out(torchrun(together))
    assert done.returncode == 0, done.stderr
    assert_same(load_checkpoint(checkpoint_path(together)), load_checkpoint(checkpoint_path(alone)))
    # each line once, and of the whole batch
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)


@pytest.fixture
def saving_text(even_text: str) -> str:
    return even_text.replace("[log]", "[checkpoint]\nsteps = 5\n\n[log]")


@pytest.fixture(scope="module")
def whole(evolution_smoke: str) -> Path:
    """A run that two processes carried out without a break."""
    text = evolution_smoke.replace("batch_size = 3", "batch_size = 2")
    text = text.replace("[log]", "[checkpoint]\nsteps = 5\n\n[log]")
    directory = Path(parse_run(text).run.directory).parents[1]
    file = write(text, directory, "whole", steps=100)
    done = carry_out(torchrun(file))
    assert done.returncode == 0, done.stderr
    return file


def again(whole: Path, name: str) -> Path:
    """The file of the same run in another directory."""
    file = whole.with_stem(name)
    file.write_text(whole.read_text().replace("/whole/", f"/{name}/"))
    return file


def assert_no_bit_differs(found: Path, expected: Path) -> None:
    one, other = (load_checkpoint(checkpoint_path(file)) for file in (found, expected))
    assert one.step == other.step
    assert all(torch.equal(one.weights[name], weight) for name, weight in other.weights.items())
    assert losses(found) == losses(expected)


@pytest.mark.slow
def test_after_deaths_on_two_nodes_both_go_on_from_the_last_checkpoint(whole: Path) -> None:
    broken = again(whole, "broken")
    launchers = [
        subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) for command in two_nodes(broken)
    ]
    # each node once: neither counts the other's deaths
    for launcher in reversed(launchers):
        changed(checkpoint_path(broken), launcher)
        kill_the_process_of(launcher)
    said = [launcher.communicate(timeout=800)[1].decode() for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert_no_bit_differs(broken, whole)


@pytest.mark.slow
def test_sigterm_stops_both_after_the_same_step(whole: Path) -> None:
    parted = again(whole, "parted")
    running = subprocess.Popen(torchrun(parted), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    # both are under way
    changed(checkpoint_path(parted), running)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=800)
    assert running.returncode != 0
    stopped = re.findall(r"stopped after (\d+) of 100 steps", said)
    assert stopped == 2 * [str(load_checkpoint(checkpoint_path(parted)).step)]
    assert carry_out(torchrun(parted, "--resume")).returncode == 0
    assert_no_bit_differs(parted, whole)


def until(holds: Callable[[], bool], running: subprocess.Popen[Any]) -> None:
    """Wait until something holds, or a process ends."""
    while not holds() and running.poll() is None:
        time.sleep(0.02)


def changed(file: Path, running: subprocess.Popen[Any]) -> None:
    """Wait until a process writes a file anew, or ends."""
    written = file.stat().st_mtime_ns if file.exists() else 0
    until(lambda: file.exists() and file.stat().st_mtime_ns != written, running)


def kill_the_process_of(launcher: subprocess.Popen[Any]) -> None:
    """Kill the one process that a launcher started, and wait until it starts another."""
    (process,) = ranks_of(launcher.pid)
    os.kill(process, signal.SIGKILL)
    until(lambda: ranks_of(launcher.pid) not in ([], [process]), launcher)


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher started."""
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(evolution_text: str, tmp_path: Path) -> None:
    refused = carry_out(torchrun(write(evolution_text, tmp_path, "uneven")))
    assert refused.returncode != 0
    assert "expected a multiple of the 2 processes, got 3" in refused.stderr
    assert not (tmp_path / "data").exists()


def test_the_parts_are_the_batch() -> None:
    parts = [Ranks(number, 3).part(12) for number in range(3)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert [Ranks(number, 3).leads for number in range(3)] == [True, False, False]
    with pytest.raises(UnevenBatch, match="got 13"):
        Ranks(0, 3).part(13)


def test_who_is_alone_does_as_if_there_were_no_others() -> None:
    with joined_ranks({}) as ranks:
        assert ranks == ALONE
    assert ALONE.mean(torch.tensor(2.0)) == 2.0
    assert [ALONE.any(told) for told in (False, True)] == [False, True]
    module = torch.nn.Linear(1, 1)
    assert ALONE.joined(module, torch.device("cpu")) is module


def test_the_loss_of_a_batch_is_the_mean_of_its_parts(finished: Any) -> None:
    """Without processes: what each would compute."""
    run = finished.run
    tasks = [make_task(run, Ranks(number, 2), torch.device("cpu")) for number in range(2)]
    whole = make_task(run, ALONE, torch.device("cpu"))
    torch.manual_seed(0)
    surrogate = surrogate_from_config(run.operator)
    parts = [task.loss(surrogate, 3) for task in tasks]
    assert parts[0] != parts[1]
    torch.testing.assert_close((parts[0] + parts[1]) / 2, whole.loss(surrogate, 3), rtol=1e-6, atol=0)

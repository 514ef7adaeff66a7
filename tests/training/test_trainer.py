"""Stopping and resuming gives, bit for bit, what not having been stopped gives."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import training
from training.checkpoint import Checkpoint, InvalidCheckpoint, load_checkpoint, save_checkpoint
from training.config import parse_run
from training.files import InUse, exclusive
from training.journal import read_journal
from training.learner import Learner, averaged_surrogate
from training.record import Diverged, Record
from training.run import make_checkpoint, make_data
from training.schedule import learning_rate
from training.trainer import CannotStart, Interrupted


class Killed(BaseException):
    """Stands for the end of the process."""


def _at(step: int, action: Any) -> Any:
    return lambda count: action() if count == step else None


def _kill() -> None:
    raise Killed


def _train(text: str, silent: Any, *, resume: bool = False, at: Any = None) -> Checkpoint:
    run = parse_run(text)
    make_data(run, silent())
    return make_checkpoint(run, text, silent(train=at), resume=resume)


def _assert_same_training(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.step == expected.step
    for group in ("weights", "average", "moment1", "moment2"):
        tensors, others = getattr(found, group), getattr(expected, group)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def _losses(directory: Path) -> list[tuple[float, ...]]:
    """The log without its times."""
    lines = read_journal(directory / "log.jsonl")
    return [tuple(value for name, value in line.items() if name != "seconds") for line in lines]


@pytest.mark.parametrize("step", [1, 5, 6, 9, 11])
def test_killed_and_resumed(finished: Any, smoke_text: str, silent: Any, step: int) -> None:
    with pytest.raises(Killed):
        _train(smoke_text, silent, at=_at(step, _kill))
    resumed = _train(smoke_text, silent, resume=True)
    _assert_same_training(resumed, finished.checkpoint())
    assert _losses(parse_run(smoke_text).run.directory) == _losses(finished.run.run.directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(finished: Any, smoke_text: str, silent: Any, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after 7 of 12 steps; continue with --resume"):
        _train(smoke_text, silent, at=_at(7, lambda: signal.raise_signal(number)))
    assert signal.getsignal(number) is handler
    assert load_checkpoint(parse_run(smoke_text).checkpoint_path).step == 7
    _assert_same_training(_train(smoke_text, silent, resume=True), finished.checkpoint())


def test_asked_to_stop_while_it_decides_whether_to_save(smoke_text: str, silent: Any) -> None:
    """The signal comes once the step's checkpoint was found not to be due: the next step stops, and saves."""
    run = parse_run(smoke_text)

    def stop_at_the_end_of_the_question(frame: FrameType, event: str, _: object) -> None:
        if (
            event == "return"
            and frame.f_code is Record.checkpoint_due.__code__
            and frame.f_locals["step"] == 7
        ):
            signal.raise_signal(signal.SIGTERM)

    sys.setprofile(stop_at_the_end_of_the_question)
    try:
        with pytest.raises(Interrupted, match="after 8 of 12 steps"):
            _train(smoke_text, silent)
    finally:
        sys.setprofile(None)
    assert load_checkpoint(run.checkpoint_path).step == 8


def test_a_finished_training_has_nothing_to_resume(finished: Any, silent: Any) -> None:
    before = finished.run.checkpoint_path.read_bytes()
    make_checkpoint(finished.run, finished.text, silent(train=_at(13, _kill)), resume=True)
    assert finished.run.checkpoint_path.read_bytes() == before


def test_a_checkpoint_is_not_overwritten(finished: Any, silent: Any) -> None:
    with pytest.raises(CannotStart, match="--resume"):
        make_checkpoint(finished.run, finished.text, silent(), resume=False)


def test_another_runs_checkpoint_is_not_resumed(finished: Any, silent: Any) -> None:
    text = finished.text.replace("learning_rate = 2e-3", "learning_rate = 3e-3")
    with pytest.raises(CannotStart, match="another run file"):
        make_checkpoint(parse_run(text), text, silent(), resume=True)


def test_a_diverging_training_stops(smoke_text: str, silent: Any) -> None:
    with pytest.raises(Diverged, match="learning_rate"):
        _train(smoke_text.replace("learning_rate = 2e-3", "learning_rate = 1e30"), silent)


def test_one_process_writes_into_a_directory(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(InUse, match="another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_training_reduces_the_loss(smoke_text: str, silent: Any) -> None:
    _train(smoke_text.replace("steps = 12", "steps = 60"), silent)
    losses = [
        line["loss"]
        for line in read_journal(parse_run(smoke_text).run.directory / "log.jsonl")
        if "loss" in line
    ]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_schedule_warms_up_and_ends_at_zero(smoke_text: str) -> None:
    optimizer = parse_run(smoke_text).optimizer
    rates = [learning_rate(optimizer, step) for step in range(13)]
    assert rates[:3] == pytest.approx([2e-3 / 3, 4e-3 / 3, 2e-3])
    assert rates[7] == pytest.approx(1e-3)
    assert rates[12] == pytest.approx(0.0, abs=1e-18)
    linear = optimizer.model_copy(update={"schedule": "linear"})
    assert learning_rate(linear, 2 + 3) == pytest.approx(0.7 * 2e-3)


def test_the_average_follows_the_weights(finished: Any) -> None:
    """The average after two steps, written out: decay min(0.9, (1 + t) / (10 + t))."""
    learner = Learner(finished.run, torch.device("cpu"))
    name = next(iter(learner._parameters))
    start, parameter = learner._average[name].clone(), learner._parameters[name]
    with torch.no_grad():
        parameter.add_(1.0)
    learner._follow(1.0 - 1 / 10)
    torch.testing.assert_close(learner._average[name], start + 0.9)


def test_evaluated_weights_are_the_averages(finished: Any) -> None:
    checkpoint = finished.checkpoint()
    state = averaged_surrogate(finished.run, checkpoint).state_dict()
    assert all(torch.equal(state[name], average) for name, average in checkpoint.average.items())
    assert any(not torch.equal(state[name], weight) for name, weight in checkpoint.weights.items())


def test_checkpoints_are_read_as_written(finished: Any, tmp_path: Path) -> None:
    checkpoint = finished.checkpoint()
    save_checkpoint(tmp_path / "c.safetensors", checkpoint)
    _assert_same_training(load_checkpoint(tmp_path / "c.safetensors"), checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(InvalidCheckpoint, match="no checkpoint"):
        load_checkpoint(path)
    path.write_bytes(b"something else")
    with pytest.raises(InvalidCheckpoint, match="expected a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "header",
    [
        "{not JSON",
        "[]",
        '{"step": 3, "run": ""}',
        '{"step": "three", "seconds": 1.0, "run": ""}',
        '{"step": null, "seconds": 1.0, "run": ""}',
    ],
)
def test_damaged_headers_are_no_checkpoints(tmp_path: Path, header: str) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"loss_sum": torch.zeros(())}, path, {"checkpoint": header})
    with pytest.raises(InvalidCheckpoint, match="expected a checkpoint"):
        load_checkpoint(path)


def test_a_missing_tensor_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"other": torch.zeros(())}, path, {"checkpoint": '{"step": 1, "seconds": 1.0, "run": ""}'})
    with pytest.raises(InvalidCheckpoint, match="loss_sum"):
        load_checkpoint(path)


def test_a_failing_save_keeps_the_previous_checkpoint(finished: Any, tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "c.safetensors", finished.checkpoint()
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    broken = Checkpoint(**{**vars(checkpoint), "loss_sum": "not a tensor"})
    with pytest.raises((ValueError, AttributeError)):
        save_checkpoint(path, broken)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_sigkill_at_random_moments(tmp_path: Path, smoke_text: str, silent: Any) -> None:
    """Kill the command twice, let it come to its end, and compare with a training that was left alone."""
    text = smoke_text.replace("steps = 12", "steps = 150")
    expected = _train(text, silent)
    killed = text.replace("/runs/", "/killed/")
    (tmp_path / "run.toml").write_text(killed)
    directory = parse_run(killed).run.directory
    command = [sys.executable, "-m", "mno", "train", str(tmp_path / "run.toml"), "--resume"]
    for earliest in (10, 70):
        with _running(command) as process:
            _kill_at_random(process, directory / "log.jsonl", random.randint(earliest, earliest + 50))
    with _running(command) as process:
        assert process.wait() == 0
    _assert_same_training(load_checkpoint(directory / "checkpoint.safetensors"), expected)
    assert _losses(directory) == _losses(parse_run(text).run.directory)


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    root = Path(training.__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def _kill_at_random(process: subprocess.Popen[bytes], log: Path, step: int) -> None:
    """Kill some time after ``step``: anywhere in a step, a line of the log or a checkpoint."""
    while not any(line["step"] >= step for line in read_journal(log)):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=random.uniform(0.0, 0.1))
        assert process.returncode is None
    process.kill()

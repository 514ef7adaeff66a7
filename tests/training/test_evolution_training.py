"""A run on trajectories: it learns, and stopping and resuming changes no bit."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from training.checkpoint import Checkpoint, load_checkpoint
from training.config import parse_run
from training.journal import read_journal
from training.run import make_checkpoint, make_data
from training.trainer import Interrupted
from training.trajectories import open_trajectories

GENERIC = """
[operator]
kind = "{kind}"
fields = 3
walls = "outflow"
history = {history}
frames = 2
reference_spacing = 1.25
channels = 8
inner_channels = 8
rank = 2
blocks = 1

"""


def _with_operator(text: str, kind: str, history: int) -> str:
    """The run with a generic operator, normalizers, and as many first frames as it needs."""
    start, end = text.index("[operator]"), text.index("[optimizer]")
    sequence = f"[sequence]\nnormalize = true\nfirst_frame = {history - 1}"
    changed = text[:start] + GENERIC.format(kind=kind, history=history) + text[end:]
    return changed.replace("[sequence]", sequence)


def _train(text: str, silent: Any, *, resume: bool = False, at: Callable[[int], object] | None = None) -> Any:
    run = parse_run(text)
    make_data(run, silent())
    return make_checkpoint(run, text, silent(train=at), resume=resume)


def _assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.step == expected.step
    for group in ("weights", "average", "moment1", "moment2"):
        tensors, others = getattr(found, group), getattr(expected, group)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def _log(text: str) -> list[dict[str, Any]]:
    lines = read_journal(parse_run(text).run.directory / "log.jsonl")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


# step 2 lies within the first stage of the curriculum, step 4 within the second
@pytest.mark.parametrize(("kind", "step"), [("shallow_water_mno", 2), ("autoregressive", 4)])
def test_stopped_and_resumed(evolution_text: str, silent: Any, kind: str, step: int) -> None:
    whole = evolution_text if kind == "shallow_water_mno" else _with_operator(evolution_text, kind, 2)
    parted = whole.replace("/runs/", "/parted/")

    def stop(count: int) -> None:
        if count == step:
            signal.raise_signal(signal.SIGTERM)

    expected = _train(whole, silent)
    with pytest.raises(Interrupted, match=f"after {step} of 6 steps; continue with --resume"):
        _train(parted, silent, at=stop)
    assert load_checkpoint(parse_run(parted).checkpoint_path).step == step
    _assert_same(_train(parted, silent, resume=True), expected)
    assert _log(parted) == _log(whole)


def test_the_log_tells_loss_and_validation(evolution_text: str, silent: Any) -> None:
    _train(evolution_text, silent)
    log = _log(evolution_text)
    assert [line["step"] for line in log if "loss" in line] == [2, 4, 6]
    validated = [line for line in log if "dams.perturbation_l2_mean" in line]
    assert [line["step"] for line in validated] == [3, 6]
    assert all(0 < line["dams.perturbation_l2_mean"] < 1 for line in validated)


@pytest.mark.parametrize("kind", ["one_shot", "latent_march", "autoregressive"])
def test_generic_operators_learn(evolution_text: str, silent: Any, kind: str) -> None:
    text = _with_operator(evolution_text, kind, 1).replace("steps = 6", "steps = 80")
    text = text.replace("{ step = 3,", "{ step = 60,").replace("learning_rate = 2e-3", "learning_rate = 1e-2")
    _train(text, silent)
    # of the curriculum's first stage
    losses = [line["loss"] for line in _log(text) if "loss" in line][:30]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_normalizers_come_from_the_data_and_are_kept(evolution_text: str, silent: Any) -> None:
    text = _with_operator(evolution_text, "one_shot", 1)
    weights = _train(text, silent).weights
    with open_trajectories(parse_run(text).data.directory / "train_dams.h5") as data:
        values = data.load()
    torch.testing.assert_close(
        weights["shift"], torch.from_numpy(values.mean((0, 1, 3, 4))), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        weights["scale"], torch.from_numpy(values.std((0, 1, 3, 4))), rtol=1e-3, atol=0
    )

"""A run of seconds, and what a finished one leaves behind."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch

import training
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import Run, parse_run
from training.run import execute

SMOKE = (Path(training.__file__).parent / "runs" / "darcy_smoke.toml").read_text()

# an evolution run of seconds: four trajectories of nine frames
EVOLUTION_SMOKE = """
[run]
name = "dams"
directory = "runs/dams"
seed = 3
device = "cpu"
threads = 1

[data]
directory = "data/dams"
problem = "shallow_water"
grid = [16, 16]
extent = [5.0, 5.0]
frames = 8
scheme = "hllc-muscl-v1"
walls = "outflow"
workers = 1

[[data.families]]
name = "dams"
family = "dams"
train = 4
validation = 2

[operator]
kind = "shallow_water_mno"
channels = 8
inner_channels = 8
rank = 2
blocks = 1
context = 4
hidden = 4
frames = 2

[optimizer]
learning_rate = 2e-3
steps = 6
batch_size = 3
ema_decay = 0.9

[sequence]
curriculum = [{ step = 0, blocks = 1 }, { step = 3, blocks = 2 }]
initial_share = 0.2
noise = 0.01

[log]
every = 2
validate_every = 3
"""


class SilentBar:
    """A progress bar that calls ``at`` with the count after every update."""

    def __init__(self, at: Any = None) -> None:
        self.count, self._at = 0, at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int = 1) -> None:
        self.count += n
        if self._at is not None:
            self._at(self.count)

    def set_postfix(self, *args: Any, **values: Any) -> None: ...


class SilentProgress:
    """Makes silent bars; ``at`` maps a bar's label to what it calls."""

    def __init__(self, **at: Any) -> None:
        self._at = at

    def __call__(self, _: Iterable[Any] | None, __: int | None, label: str) -> SilentBar:
        return SilentBar(self._at.get(label))


@dataclass(frozen=True)
class Finished:
    """A run that was carried out."""

    run: Run
    text: str
    directory: Path

    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.run.checkpoint_path)


@pytest.fixture
def progress() -> SilentProgress:
    return SilentProgress()


@pytest.fixture(scope="session")
def silent() -> type[SilentProgress]:
    return SilentProgress


def in_directory(text: str, directory: Path) -> str:
    """The smoke run's text with its two directories below ``directory``."""
    return (
        text.replace('"runs/', f'"{directory}/runs/')
        .replace('"data/', f'"{directory}/data/')
        .replace('"file:runs/', f'"file:{directory}/runs/')
    )


@pytest.fixture
def smoke_text(tmp_path: Path) -> str:
    return in_directory(SMOKE, tmp_path)


@pytest.fixture
def evolution_text(tmp_path: Path) -> str:
    return in_directory(EVOLUTION_SMOKE, tmp_path)


@pytest.fixture(scope="module")
def evolution_smoke(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The evolution run, below a directory that the tests of a module share."""
    return in_directory(EVOLUTION_SMOKE, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The smoke run, from data to a published version; tests only read it."""
    directory = tmp_path_factory.mktemp("finished")
    text = in_directory(SMOKE, directory)
    run = parse_run(text)
    with torch_settings():
        execute(run, text, SilentProgress(), resume=False)
    return Finished(run, text, directory)


@pytest.fixture(autouse=True)
def _unchanged_torch_settings() -> Iterator[None]:
    with torch_settings():
        yield


class torch_settings:  # noqa: N801 (used like a function)
    """Put PyTorch's global settings back."""

    def __enter__(self) -> None:
        self._before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()

    def __exit__(self, *_: object) -> None:
        deterministic, threads = self._before
        # the call imports the compiler, which takes seconds
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)

"""What can continue a trajectory: a contract, and the surrogate as one of those that fulfil it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from operators import EvolutionSurrogate
from training.dataset import InvalidDataset
from training.trajectories import Trajectories

Given = Float32[np.ndarray, "sample time channel y x"]


@dataclass(frozen=True)
class Continuation:
    """The frames that a forecast found, and what they cost all samples together.

    Attributes:
        frames: after the given ones, of the channels that the given ones have.
        cpu_seconds: of all threads, on a CPU.
        seconds: as a clock has them.
    """

    frames: Float32[np.ndarray, "sample frame channel y x"]
    cpu_seconds: float
    seconds: float


class Forecast(ABC):
    """A way to continue trajectories.

    Attributes:
        name: for tables and legends.
        channels: how many of the state's channels it takes; None for those that the file has.
    """

    name: str
    channels: int | None

    @abstractmethod
    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:
        """The next ``frames`` frames.

        Args:
            indices: numbers of the samples in their file.
            given: all frames so far, the initial state first.
            frames: how many to predict.
        """


@final
class Stopwatch:
    """Adds up processor and clock time of the blocks that it guards."""

    def __init__(self) -> None:
        self.cpu_seconds = self.seconds = 0.0

    def __enter__(self) -> Self:
        self._cpu, self._clock = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds += time.process_time() - self._cpu
        self.seconds += time.perf_counter() - self._clock


@final
class SurrogateForecast(Forecast):
    """A rollout of an evolution surrogate on its own output."""

    def __init__(
        self, surrogate: EvolutionSurrogate, extent: tuple[float, float], name: str = "surrogate"
    ) -> None:
        self.name = name
        self.channels = len(surrogate.shift)
        self._surrogate, self._extent = surrogate, extent
        self._warm = False

    def __call__(self, indices: Sequence[int], given: Given, frames: int) -> Continuation:  # noqa: ARG002
        """Of the given frames the last ``history`` ones count."""
        if not self._warm:
            # what is compiled or allocated once is no cost of a trajectory
            self._roll(given[:1], 1)
            self._warm = True
        with Stopwatch() as watch:
            predicted = self._roll(given, frames)
        return Continuation(predicted, watch.cpu_seconds, watch.seconds)

    @torch.inference_mode()
    def _roll(self, given: Given, frames: int) -> NDArray[np.float32]:
        surrogate = self._surrogate
        known = torch.from_numpy(np.ascontiguousarray(given[:, -surrogate.history :]))
        parts, count = [], 0
        for block in surrogate.blocks(known.to(surrogate.shift.device), self._extent):
            parts.append(block.float().cpu())
            count += block.shape[1]
            if count >= frames:
                break
        return np.asarray(torch.cat(parts, dim=1)[:, :frames].numpy())


def require_history(surrogate: EvolutionSurrogate, data: Trajectories, first_frame: int) -> None:
    """Raises ``InvalidDataset`` unless frames 0, ..., ``first_frame`` are all that the surrogate needs."""
    if first_frame + 1 < surrogate.history:
        raise InvalidDataset(
            f"the model needs {surrogate.history} frames: expected --first-frame of at least "
            f"{surrogate.history - 1}, got {first_frame}"
        )
    if first_frame + 1 >= len(data.times):
        raise InvalidDataset(
            f"{data.path} has {len(data.times)} frames: none is left to predict after frame {first_frame}"
        )

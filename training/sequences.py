"""Stretches of trajectories to train on: which ones a step takes is a function of seed and step alone."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from training.augment import RECTANGLE, SQUARE, transform
from training.ranks import ALONE, Ranks
from training.trajectories import ALL_FRAMES, Trajectories

# streams of random numbers: samples, symmetries, first frames, chosen frames, noise
_ORDER, _SYMMETRY, _START, _CHOSEN, _NOISE = range(5)


class SequenceSchedule(NamedTuple):
    """What the steps of a training take.

    Attributes:
        samples: number of trajectories.
        frames: of a trajectory, the initial state included.
        first_frame: the earliest frame that may be the last given one.
        history: given frames.
        batch_size: stretches per step.
        seed: of everything that is drawn.
        symmetries: number of symmetries.
        initial_share: share of the stretches that continue ``first_frame``.
    """

    samples: int
    frames: int
    first_frame: int
    history: int
    batch_size: int
    seed: int
    symmetries: int
    initial_share: float

    def samples_at(self, step: int) -> NDArray[np.int64]:
        """Trajectories of a step; an epoch permutes anew, and its remainder opens the next one."""
        position = step * self.batch_size + np.arange(self.batch_size)
        epochs, places = np.divmod(position, self.samples)
        orders = {
            int(epoch): self._rng(_ORDER, int(epoch)).permutation(self.samples) for epoch in set(epochs)
        }
        return np.array([orders[int(e)][p] for e, p in zip(epochs, places, strict=True)])

    def symmetries_at(self, step: int) -> NDArray[np.int64]:
        """Symmetry elements of the stretches of a step."""
        return self._rng(_SYMMETRY, step).integers(self.symmetries, size=self.batch_size)

    def starts_at(self, step: int, length: int) -> NDArray[np.int64]:
        """First frames of stretches of ``length`` frames."""
        rng = self._rng(_START, step)
        earliest, latest = self.first_frame - (self.history - 1), self.frames - length
        starts = rng.integers(earliest, latest + 1, size=self.batch_size)
        return np.where(rng.random(self.batch_size) < self.initial_share, earliest, starts)

    def chosen_at(self, step: int, frames: int, count: int) -> tuple[int, ...]:
        """``count`` of the frames of a block, the last one among them."""
        others = self._rng(_CHOSEN, step).permutation(frames - 1)[: count - 1]
        return (*sorted(int(frame) for frame in others), frames - 1)

    def noise_at(self, step: int) -> torch.Generator:
        """A generator of noise."""
        return torch.Generator().manual_seed(int(self._rng(_NOISE, step).integers(2**62)))

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, number])


@final
class HeldTrajectories:
    """Trajectories in memory: where one process trains alone. Of several, each reads ``Trajectories``."""

    def __init__(self, values: Float[np.ndarray, "sample time channel y x"]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @property
    def frames(self) -> int:
        """Of a trajectory, the initial state included."""
        return int(self._values.shape[1])

    @property
    def grid(self) -> tuple[int, int]:
        """Cells (ny, nx)."""
        ny, nx = self._values.shape[-2:]
        return ny, nx

    def read(self, index: int, frames: slice = ALL_FRAMES) -> Float[np.ndarray, "time channel y x"]:
        """Frames of one trajectory."""
        return self._values[index, frames]


@final
class SequenceSet:
    """The training trajectories, and which stretches of them a step takes."""

    def __init__(
        self,
        parts: Sequence[HeldTrajectories | Trajectories],
        extent: tuple[float, float],
        vectors: Sequence[tuple[int, int]],
    ) -> None:
        self.extent = extent
        self._vectors = vectors
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def frames(self) -> int:
        """Frames of a trajectory, the initial state included."""
        return min(part.frames for part in self._parts)

    @property
    def symmetries(self) -> int:
        """Number of symmetries that map the domain and the grid to themselves."""
        ny, nx = self._parts[0].grid
        return SQUARE if ny == nx and self.extent[0] == self.extent[1] else RECTANGLE

    def batch(
        self, schedule: SequenceSchedule, step: int, length: int, part: slice = slice(None)
    ) -> Float[Tensor, "batch time channel y x"]:
        """A part of the stretches of a step, transformed."""
        drawn = zip(
            schedule.samples_at(step)[part],
            schedule.starts_at(step, length)[part],
            schedule.symmetries_at(step)[part],
            strict=True,
        )
        return torch.stack(
            [
                transform_state(
                    self._read(int(sample), slice(start, start + length)), int(element), self._vectors
                )
                for sample, start, element in drawn
            ]
        )

    def moments(self, ranks: Ranks = ALONE) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of every channel; each process reads its share of the trajectories."""
        sums = torch.stack(
            [_sums(self._read(number)) for number in range(ranks.number, len(self), ranks.count)]
        )
        count, total, square = ranks.sum(sums.sum(0))
        mean = total / count
        return mean.tolist(), (square / count - mean.square()).clamp_min(1e-12).sqrt().tolist()

    def _read(self, number: int, frames: slice = ALL_FRAMES) -> Float[Tensor, "time channel y x"]:
        part = int(np.searchsorted(self._ends, number, side="right"))
        place = self._parts[part]
        return torch.from_numpy(place.read(number - int(self._ends[part]) + len(place), frames))


def _sums(states: Float[Tensor, "time channel y x"]) -> Float[Tensor, "3 channel"]:
    """Of ones, of values and of squares."""
    axes = (0, 2, 3)
    powers = (torch.ones_like(states), states, states.square())
    return torch.stack([power.sum(axes, dtype=torch.float64) for power in powers])


def transform_state(
    states: Shaped[Tensor, "*batch channel y x"], element: int, vectors: Sequence[tuple[int, int]]
) -> Shaped[Tensor, "*batch channel y2 x2"]:
    """A symmetry of the square, of scalars and of vectors; ``vectors``: channels (along x, along y)."""
    moved = transform(states, element).clone()
    for along_x, along_y in vectors:
        x, y = moved[..., along_x, :, :].clone(), moved[..., along_y, :, :].clone()
        # the mirrors come first: bit 0 turns y around, bit 1 turns x around, bit 2 exchanges them
        y, x = (-y if element & 1 else y), (-x if element & 2 else x)
        moved[..., along_x, :, :], moved[..., along_y, :, :] = (y, x) if element & 4 else (x, y)
    return moved

"""The orders in which a scan visits the tokens of a grid.

Token ``row * W + column`` belongs to the point (row, column) of a grid of H rows and W columns. A direction
walks through segments of equal length with one stride between tokens and another between segments.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Int
from torch import Tensor

CHUNK = 32
"""Tokens between two stored states: memory of the states against work done again in the backward pass."""


class Direction(IntEnum):
    """Order of a scan. The axial ones treat each row or column as a sequence of its own."""

    FORWARD = 0
    REVERSE = 1
    COLUMN_MAJOR = 2
    COLUMN_MAJOR_REVERSE = 3
    ROW_FORWARD = 4
    ROW_REVERSE = 5
    COLUMN_FORWARD = 6
    COLUMN_REVERSE = 7


@dataclass(frozen=True)
class Path:
    """Visits token ``start + segment * segment_stride + step * token_stride`` segment by segment."""

    segments: int
    length: int
    start: int
    segment_stride: int
    token_stride: int
    resets: bool
    """Whether each segment begins with a zero state."""

    @property
    def chunks(self) -> int:
        """Chunks of a segment."""
        return -(-self.length // CHUNK)

    @property
    def checkpoints(self) -> int:
        """Stored states: one before each chunk, except where it is known to be zero."""
        return self.segments * (self.chunks - 1) if self.resets else self.segments * self.chunks - 1

    def tokens(self, device: torch.device) -> Int[Tensor, "segment step"]:
        """Lists the tokens in the order of the visit."""
        segment = torch.arange(self.segments, device=device)[:, None]
        step = torch.arange(self.length, device=device)
        return self.start + segment * self.segment_stride + step * self.token_stride


def paths(directions: Sequence[int], grid: Sequence[int], tokens: int) -> tuple[Path, ...]:
    """Builds the paths of several directions."""
    if all(type(size) is int for size in (tokens, *grid)):
        return _cached_paths(tuple(directions), tuple(grid), tokens)
    # while a program is exported, sizes are symbols
    return tuple(path(direction, grid, tokens) for direction in directions)


@functools.lru_cache(maxsize=256)
def _cached_paths(directions: tuple[int, ...], grid: tuple[int, ...], tokens: int) -> tuple[Path, ...]:
    return tuple(path(direction, grid, tokens) for direction in directions)


def path(direction: int, grid: Sequence[int], tokens: int) -> Path:
    """Builds the path of a direction; ``grid`` is (H, W), or empty where rows do not matter."""
    if direction == Direction.FORWARD:
        return Path(1, tokens, 0, 0, 1, resets=False)
    if direction == Direction.REVERSE:
        return Path(1, tokens, tokens - 1, 0, -1, resets=False)
    height, width = _sides(direction, grid, tokens)
    if direction == Direction.COLUMN_MAJOR:
        return Path(width, height, 0, 1, width, resets=False)
    if direction == Direction.COLUMN_MAJOR_REVERSE:
        return Path(width, height, tokens - 1, -1, -width, resets=False)
    if direction == Direction.ROW_FORWARD:
        return Path(height, width, 0, width, 1, resets=True)
    if direction == Direction.ROW_REVERSE:
        return Path(height, width, width - 1, width, -1, resets=True)
    if direction == Direction.COLUMN_FORWARD:
        return Path(width, height, 0, 1, width, resets=True)
    return Path(width, height, tokens - width, 1, -width, resets=True)


def _sides(direction: int, grid: Sequence[int], tokens: int) -> tuple[int, int]:
    name = Direction(direction).name
    if len(grid) != 2:
        raise ValueError(f"direction {name} needs grid=(H, W), got {tuple(grid)}")
    height, width = grid
    if height * width != tokens:
        raise ValueError(
            f"grid=(H, W) must have as many points as tokens: {height} x {width} against {tokens}"
        )
    return height, width

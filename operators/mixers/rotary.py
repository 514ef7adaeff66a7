"""Rotary positions in two dimensions: products of rotated vectors depend on where one lies from the other.

Su et al. 2021 (arXiv 2104.09864), equation 14; half of the channels for each axis as in OFormer (Li, Meidani
and Barati Farimani 2023, arXiv 2205.13671, appendix A).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from operators.points import Points

# the angle of the fastest channel is 1 at this distance
ROTARY_UNIT = 1 / 64
LONGEST = 10_000.0


def rotated(
    parts: Float[Tensor, "batch head token part"], points: Points, scale: float
) -> Float[Tensor, "batch head token part"]:
    """The first half of the channels turned by angles along y, the second half by those along x.

    Raises:
        ValueError: the channels are no multiple of 4.
    """
    if parts.shape[-1] % 4:
        raise ValueError(
            f"expected heads of a multiple of 4 channels for rotary positions, got {parts.shape[-1]}"
        )
    halves = parts.chunk(2, dim=-1)
    return torch.cat(
        [
            _turned(half, points.coordinates[:, axis].to(parts.dtype) * scale / ROTARY_UNIT)
            for axis, half in enumerate(halves)
        ],
        dim=-1,
    )


def _turned(parts: Tensor, distance: Float[Tensor, " token"]) -> Tensor:
    pairs = parts.shape[-1] // 2
    rates = LONGEST ** (-torch.arange(pairs, device=parts.device, dtype=parts.dtype) / pairs)
    angles = distance[:, None] * rates
    first, second = parts.chunk(2, dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

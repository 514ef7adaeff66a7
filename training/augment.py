"""The symmetries of the square (the dihedral group D4), exact for every scheme of Darcy's problem."""

import torch
from jaxtyping import Shaped
from torch import Tensor

# transpositions need a square grid; the other four elements fit any rectangle
SQUARE, RECTANGLE = 8, 4


def transform(fields: Shaped[Tensor, "*batch y x"], element: int) -> Shaped[Tensor, "*batch y2 x2"]:
    """Apply element 0 <= ``element`` < 8: bit 0 mirrors y, bit 1 mirrors x, bit 2 then exchanges y and x."""
    mirrored = [axis for axis, bit in ((-2, 1), (-1, 2)) if element & bit]
    flipped = torch.flip(fields, mirrored) if mirrored else fields
    return flipped.transpose(-1, -2) if element & 4 else flipped

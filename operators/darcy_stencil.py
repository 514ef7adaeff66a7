"""Two-point-flux stencils of ``-div(k grad u)`` with u = 0 on the wall, differentiable and batched.

The discrete operator sums, over the faces of a cell, transmissibility times the difference across the face:
``(A u)_i = sum_f T_f (u_i - u_nb)``. Training measures errors in its energy norm and the operator's last
layer relaxes with it; the float64 reference solver is a separate implementation in ``problems``.

Source: Eymard, Gallouet and Herbin, *Finite Volume Methods* (2000), section 3.1 (harmonic
transmissibilities).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Field = Float[Tensor, "batch 1 y x"]


class Transmissibilities(NamedTuple):
    """Face coefficients, walls included: ``y_faces`` [batch 1 y+1 x] and ``x_faces`` [batch 1 y x+1]."""

    y_faces: Tensor
    x_faces: Tensor


def _harmonic(left: Tensor, right: Tensor) -> Tensor:
    return 2.0 * left * right / (left + right)


def _arithmetic(left: Tensor, right: Tensor) -> Tensor:
    return 0.5 * (left + right)


# scheme -> (mean of two cells, wall transmissibility over the cell's coefficient)
SCHEMES: Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "tpfa-harmonic-v1": (_harmonic, 2.0),
    "pdebench-ghost0-v1": (_arithmetic, 1.0),
}


def transmissibilities(k: Field, spacing: tuple[float, float], scheme: str) -> Transmissibilities:
    """Face transmissibilities of ``scheme`` on cells of size ``spacing`` = (hy, hx)."""
    mean, wall = SCHEMES[scheme]
    hy, hx = spacing
    inner_y, inner_x = mean(k[..., 1:, :], k[..., :-1, :]), mean(k[..., :, 1:], k[..., :, :-1])
    y_faces = torch.cat([wall * k[..., :1, :], inner_y, wall * k[..., -1:, :]], dim=-2)
    x_faces = torch.cat([wall * k[..., :, :1], inner_x, wall * k[..., :, -1:]], dim=-1)
    return Transmissibilities(y_faces * (hx / hy), x_faces * (hy / hx))


def _jumps(u: Tensor) -> tuple[Tensor, Tensor]:
    """Differences across all faces, with the value 0 behind the wall."""
    padded = torch.nn.functional.pad(u, (1, 1, 1, 1))
    return padded[..., 1:, 1:-1] - padded[..., :-1, 1:-1], padded[..., 1:-1, 1:] - padded[..., 1:-1, :-1]


def apply(faces: Transmissibilities, u: Field) -> Field:
    """``A u``: the net outflow of each cell."""
    jump_y, jump_x = _jumps(u)
    flux_y, flux_x = faces.y_faces * jump_y, faces.x_faces * jump_x
    return flux_y[..., :-1, :] - flux_y[..., 1:, :] + flux_x[..., :-1] - flux_x[..., 1:]


def diagonal(faces: Transmissibilities) -> Field:
    """The diagonal of ``A``."""
    y, x = faces
    return y[..., :-1, :] + y[..., 1:, :] + x[..., :-1] + x[..., 1:]


def jacobi(faces: Transmissibilities, source: float) -> Callable[[Field], Field]:
    """The Jacobi sweep ``u -> u + (f - A u) / diag(A)``: each cell takes the value that balances its fluxes.

    Args:
        faces: transmissibilities of ``A``.
        source: right-hand side ``f``, integrated over a cell.
    """
    y, x = faces
    inverse = diagonal(faces).reciprocal()
    above, below, left, right = (
        t * inverse for t in (y[..., :-1, :], y[..., 1:, :], x[..., :-1], x[..., 1:])
    )
    load = source * inverse

    def sweep(u: Field) -> Field:
        padded = torch.nn.functional.pad(u, (1, 1, 1, 1))
        value = torch.addcmul(load, above, padded[..., :-2, 1:-1])
        value = torch.addcmul(value, below, padded[..., 2:, 1:-1])
        value = torch.addcmul(value, left, padded[..., 1:-1, :-2])
        return torch.addcmul(value, right, padded[..., 1:-1, 2:])

    return sweep


def energy_norm(faces: Transmissibilities, u: Field) -> Float[Tensor, " batch"]:
    """``sqrt(u' A u)``: the 1/k-weighted L2 norm of the flux."""
    jump_y, jump_x = _jumps(u)
    squares = (faces.y_faces * jump_y.square()).flatten(1).sum(1) + (faces.x_faces * jump_x.square()).flatten(
        1
    ).sum(1)
    return squares.sqrt()

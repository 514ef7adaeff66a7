"""Coarse flux balance: settles what is global about a field that a network proposes.

Given a positive field ``v`` and bilinear hats ``phi_j`` that add up to one on a coarse grid, the balanced
field is ``u = sum_j c_j phi_j v`` with ``(phi_i, A u) = (phi_i, f)`` for every coarse node: weighted by any
hat, the flux that leaves equals the source. If ``v`` is the solution times anything bilinear on the coarse
grid, ``u`` is the solution; so the network is left with what is local, the shape of the solution within a
coarse cell. Testing with smooth hats (and not with ``phi_i v``) keeps the balance insensitive to roughness of
``v``, which averages out of a coarse flux.

Sources: Jenny, Lee and Tchelepi, J. Comput. Phys. 187 (2003), the multiscale finite-volume method; Hou and
Wu, J. Comput. Phys. 134 (1997), coarse basis functions that carry the fine structure of the coefficient.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from operators.darcy_stencil import Transmissibilities
from operators.per_grid import per_grid


class _Side(NamedTuple):
    """Constants of a coarse grid along one side of ``cells`` cells with ``coarse`` intervals.

    A coarse cell has two hats, ``0`` falling and ``1`` rising. They are flat across the faces between coarse
    cells, so a test function jumps only across faces inside a coarse cell, there by ``slope``.
    """

    rising: Float[Tensor, " cell"]
    inner: Float[Tensor, " cell"]  # 1 where the face before the cell lies inside a coarse cell
    sums: Float[Tensor, "cell coarse"]  # adds up the cells of a coarse cell
    products: Float[Tensor, "pair coarse cell"]  # the same weighted with hat products 00, 01, 11
    prolongation: Float[Tensor, "cell node"]
    slope: float


@per_grid
def _side(cells: int, coarse: int, dtype: torch.dtype, device: torch.device) -> _Side:
    width = cells // coarse
    local = torch.arange(cells, device=device) % width
    rising = local.to(dtype) / (width - 1)
    member = torch.arange(cells, device=device)[:, None] // width == torch.arange(coarse, device=device)
    sums = member.to(dtype)
    pairs = torch.stack([(1 - rising) ** 2, rising * (1 - rising), rising**2])
    prolongation = torch.zeros(cells, coarse + 1, dtype=dtype, device=device)
    prolongation[:, :-1] += sums * (1 - rising)[:, None]
    prolongation[:, 1:] += sums * rising[:, None]
    return _Side(
        rising, (local > 0).to(dtype), sums, pairs[:, None, :] * sums.T, prolongation, 1 / (width - 1)
    )


@per_grid
def _element_entries(coarse: int, device: torch.device) -> Tensor:
    """Place in the flattened coarse matrix of the entries [Y X p q p' q'] of all element matrices."""
    line = torch.arange(coarse, device=device)[:, None] + torch.arange(2, device=device)  # [element node]
    nodes = (line[:, None, :, None] * (coarse + 1) + line[None, :, None, :]).flatten(2)  # [Y X pq]
    return (nodes[..., :, None] * (coarse + 1) ** 2 + nodes[..., None, :]).flatten()


def balance_fluxes(
    field: Float[Tensor, "batch 1 y x"], faces: Transmissibilities, source: float, intervals: int
) -> Float[Tensor, "batch 1 y x"]:
    """The multiple ``c v`` of ``field`` whose coarse fluxes balance.

    ``c`` is bilinear on ``intervals`` x ``intervals`` coarse cells.

    Args:
        field: ``v``, not zero inside the domain.
        faces: transmissibilities of the fine operator ``A``.
        source: right-hand side ``f``, integrated over a cell.
        intervals: coarse cells along each side; they must divide the grid into cells of at least 2 x 2.
    """
    batch, (ny, nx) = field.shape[0], field.shape[-2:]
    y, x = (_side(cells, intervals, field.dtype, field.device) for cells in (ny, nx))
    v = field[:, 0]
    across_x = _elements(v, faces.x_faces[:, 0], y, x)
    across_y = _elements(v.mT, faces.y_faces[:, 0].mT, x, y)
    elements = across_x + across_y.permute(0, 2, 1, 4, 3, 6, 5)
    nodes = (intervals + 1) ** 2
    matrix = field.new_zeros(batch, nodes**2)
    matrix = matrix.index_add(1, _element_entries(intervals, field.device), elements.flatten(1))
    load = source * torch.outer(y.prolongation.sum(0), x.prolongation.sum(0)).flatten()
    # a singular matrix makes its own sample's answer non-finite, and leaves the rest of the batch alone
    c, _ = torch.linalg.solve_ex(matrix.reshape(batch, nodes, nodes), load.expand(batch, nodes))
    fine_c: Tensor = y.prolongation @ c.reshape(batch, intervals + 1, intervals + 1) @ x.prolongation.T
    return field * fine_c[:, None]


def _elements(v: Tensor, x_faces: Tensor, y: _Side, x: _Side) -> Float[Tensor, "batch Y X p q p2 q2"]:
    """Element matrices of the fluxes across ``x_faces``, walls included.

    Test node (p, q), trial node (p2, q2) of coarse cell (Y, X).
    """
    t = x_faces[:, :, 1:-1] * x.inner[1:]
    right, left = t * v[:, :, 1:], t * v[:, :, :-1]
    # jumps of v and of the rising hat times v, times T; the falling hat is one minus the rising
    of_all = (right - left) @ x.sums[1:]
    of_rising = (right * x.rising[1:] - left * x.rising[:-1]) @ x.sums[1:]
    of_hats = torch.stack([of_all - of_rising, of_rising], dim=1)  # [batch q2 y X]
    test = of_hats.new_tensor([-x.slope, x.slope])
    sums = torch.matmul(y.products, of_hats[:, :, None])  # [batch q2 pair Y X]
    inner = sums[:, None] * test[:, None, None, None, None] + _walls(v, x_faces, y, sums.shape[-1])
    by_p = torch.stack([inner[:, :, :, :2], inner[:, :, :, 1:]], dim=3)  # [batch q q2 p p2 Y X]
    return by_p.permute(0, 5, 6, 3, 1, 4, 2)


def _walls(v: Tensor, x_faces: Tensor, y: _Side, coarse: int) -> Float[Tensor, "batch q q2 pair Y X"]:
    """The same of the fluxes into the first and the last wall, where one hat is 1 and the other 0."""
    flux = torch.stack([x_faces[:, :, 0] * v[:, :, 0], x_faces[:, :, -1] * v[:, :, -1]], dim=-1)
    sums = torch.matmul(y.products, flux[:, None])  # [batch pair Y wall]
    place = flux.new_zeros(2, 2, 2, coarse)  # [wall q q2 X]
    place[0, 0, 0, 0] = place[1, 1, 1, -1] = 1.0
    return torch.einsum("bkYw,wqsX->bqskYX", sums, place)

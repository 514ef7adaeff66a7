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

from functools import partial
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from operators.darcy_stencil import Transmissibilities
from operators.per_grid import per_grid

# on a CPU, at most so many coarse nodes are eliminated at once: from 150 on, MKL shares a factorization among
# threads that spin for each other, which takes a thousand times as long where one has to wait for a core
MOST_NODES: Final = 110


class _Side(NamedTuple):
    """Constants of a coarse grid along one side of n cells with m intervals.

    A coarse cell has two hats, ``0`` falling and ``1`` rising. They are flat across the faces between coarse
    cells, so a test function jumps only across faces inside a coarse cell, by the same slope everywhere, and
    across the walls. With ``v`` times the transmissibility of the face before (after) a cell, ``before``
    (``after``) add up the jumps of hat times ``v`` over the faces of each coarse cell: columns are 2 hats x m
    coarse cells, then the two walls.
    """

    before: Float[Tensor, "cell column"]
    after: Float[Tensor, "cell column"]
    # adds up cells weighted with products of the hats, 00, 01 and 11
    products: Float[Tensor, "3*interval cell"]
    prolongation: Float[Tensor, "cell node"]


class _Assembly(NamedTuple):
    """How the entries of the coarse matrix come from the sums along both directions."""

    source: Float[Tensor, " entry"]  # place among the sums
    target: Float[Tensor, " entry"]  # place in the flattened matrix
    jump: Float[Tensor, " entry"]  # of the test function


@per_grid
def _side(cells: int, intervals: int, dtype: torch.dtype, device: torch.device) -> _Side:
    width = cells // intervals

    def everywhere(coarse_cell: Float[Tensor, " cell"]) -> Float[Tensor, " cell"]:
        return coarse_cell.expand(intervals, width).flatten()

    member = torch.eye(intervals, dtype=torch.float64)[:, None].expand(-1, width, -1).flatten(0, 1)
    rising = everywhere(torch.arange(width).double() / (width - 1))
    hats = torch.stack([1 - rising, rising])
    inside = torch.ones(width - 1, dtype=torch.float64)
    inner_before, inner_after = everywhere(pad(inside, (1, 0))), everywhere(pad(inside, (0, 1)))
    walls = torch.zeros(2, cells, 2, dtype=torch.float64)
    walls[0, 0, 0] = walls[1, -1, 1] = 1.0

    def columns(inside: Tensor, wall: Tensor) -> Tensor:
        per_hat = (hats * inside)[:, :, None] * member  # [hat cell interval]
        return torch.cat([per_hat[0], per_hat[1], wall], dim=1)

    pairs = torch.stack([hats[0] ** 2, hats[0] * hats[1], hats[1] ** 2])
    products = (pairs[:, None, :] * member.T).flatten(0, 1)
    prolongation = torch.zeros(cells, intervals + 1, dtype=torch.float64)
    prolongation[:, :-1] += member * hats[0][:, None]
    prolongation[:, 1:] += member * hats[1][:, None]
    # across a face inside, the jump is the value behind it minus the one before it
    tables = (columns(inner_before, walls[0]), columns(-inner_after, walls[1]), products, prolongation)
    return _Side(*(table.to(device, dtype) for table in tables))


@per_grid
def _assembly(ny: int, nx: int, intervals: int, dtype: torch.dtype, device: torch.device) -> _Assembly:
    """Entries of all element matrices: across x faces, then across y faces (with y and x exchanged)."""
    columns = 2 * intervals + 2
    node = torch.arange((intervals + 1) ** 2).reshape(intervals + 1, intervals + 1)
    sources, targets, jumps = [], [], []
    # row: coarse cell along the faces, column: across them
    for across_y, width in ((False, nx // intervals), (True, ny // intervals)):
        place = node.T if across_y else node
        offset = 3 * intervals * columns if across_y else 0
        row, column = torch.meshgrid(torch.arange(intervals), torch.arange(intervals), indexing="ij")
        for p, p2 in ((0, 0), (0, 1), (1, 0), (1, 1)):
            first = offset + ((p + p2) * intervals + row) * columns
            for q2 in (0, 1):
                for q in (0, 1):
                    sources.append((first + q2 * intervals + column).flatten())
                    targets.append(_entry(place, row + p, column + q, row + p2, column + q2))
                    jumps.append(torch.full((row.numel(),), (2 * q - 1) / (width - 1), dtype=torch.float64))
            for wall, at in ((0, 0), (1, intervals)):
                line = torch.arange(intervals)
                end = torch.full_like(line, at)
                sources.append(first[:, 0] + 2 * intervals + wall)
                targets.append(_entry(place, line + p, end, line + p2, end))
                jumps.append(torch.ones(intervals, dtype=torch.float64))
    index = partial(torch.Tensor.to, device=device)
    return _Assembly(index(torch.cat(sources)), index(torch.cat(targets)), torch.cat(jumps).to(device, dtype))


def _entry(place: Tensor, row: Tensor, column: Tensor, row2: Tensor, column2: Tensor) -> Tensor:
    """Place of (test node, trial node) in the flattened matrix."""
    return (place[row, column] * place.numel() + place[row2, column2]).flatten()


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
    assembly = _assembly(ny, nx, intervals, field.dtype, field.device)
    v = field[:, 0]
    across_x = _sums(v, faces.x_faces[:, 0], y, x)
    across_y = _sums(v.mT, faces.y_faces[:, 0].mT, x, y)
    entries = torch.cat([across_x, across_y], dim=1)[:, assembly.source] * assembly.jump
    nodes = (intervals + 1) ** 2
    matrix = field.new_zeros(batch, nodes**2).index_add(1, assembly.target, entries)
    load = source * torch.outer(y.prolongation.sum(0), x.prolongation.sum(0)).flatten()
    c = _solve(matrix.reshape(batch, nodes, nodes), load.expand(batch, nodes), intervals + 1)
    fine_c: Tensor = y.prolongation @ c.reshape(batch, intervals + 1, intervals + 1) @ x.prolongation.T
    return field * fine_c[:, None]


def _solve(
    matrix: Float[Tensor, "batch node node"], load: Float[Tensor, "batch node"], line: int
) -> Float[Tensor, "batch node"]:
    """Solves each system; the answer of a singular one is not finite, and leaves the others alone.

    Args:
        matrix: couples nodes of the same line and of neighbouring ones.
        load: right-hand sides.
        line: nodes on a line of the coarse grid.
    """
    if matrix.device.type != "cpu":
        together: Tensor = torch.linalg.solve_ex(matrix, load)[0]
        return together
    parts: list[Tensor] = []  # answers to [the first line behind the part, load], with all before eliminated
    nodes = matrix.shape[-1]
    step = max(1, MOST_NODES // line) * line
    for start in range(0, nodes, step):
        stop = min(start + step, nodes)
        block = matrix[:, start:stop, start:stop]
        behind, right = matrix[:, start:stop, stop : stop + line], load[:, start:stop, None]
        if parts:
            rest = stop - start - line
            known = matrix[:, start : start + line, start - line : start] @ parts[-1][:, -line:]
            block = block - pad(known[..., :-1], (0, rest, 0, rest))
            right = right - pad(known[..., -1:], (0, 0, 0, rest))
        parts.append(_solve_each(block, torch.cat([behind, right], dim=-1)))
    solution = parts[-1]
    for part in reversed(parts[:-1]):
        head = part[..., -1:] - part[..., :-1] @ solution[:, :line]
        solution = torch.cat([head, solution], dim=1)
    return solution[..., 0]


def _solve_each(
    matrix: Float[Tensor, "batch node node"], right: Float[Tensor, "batch node column"]
) -> Float[Tensor, "batch node column"]:
    # PyTorch factors the matrices of a batch within OpenMP threads, where MKL has no threads of its own. Once
    # anybody in the process has called torch.set_num_threads it counts on them for all but small matrices: it
    # waits for ever, or breaks the factors (https://github.com/pytorch/pytorch/issues/141358)
    return torch.stack([torch.linalg.solve_ex(*system)[0] for system in zip(matrix, right, strict=True)])


def _sums(v: Tensor, x_faces: Tensor, y: _Side, x: _Side) -> Float[Tensor, "batch 3*Y*column"]:
    """Transmissibility times jump of hat times ``v``, summed over the x faces of each coarse cell."""
    jumps = (x_faces[:, :, :-1] * v) @ x.before + (x_faces[:, :, 1:] * v) @ x.after  # [batch y column]
    return torch.matmul(y.products, jumps).flatten(1)

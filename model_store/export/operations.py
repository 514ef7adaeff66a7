"""Operations that a traced graph keeps whole, because the file has a function for them.

``mno::scan_lines`` is the selective scan of one order only: many lines, each from its first step to its last.
Every direction of ``mno::selective_scan`` is that, with its tokens laid out as it meets them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple, cast, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from operators import multiscale
from operators.scan import Direction
from operators.scan.op import selective_scan_op

# torch does not annotate these methods
_library: Any = cast(Any, torch.library.Library)("mno", "FRAGMENT")
_library.define("scan_lines(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C) -> Tensor")
_library.define("solve_lines(Tensor matrix, Tensor load) -> Tensor")


def _scan_lines(
    x: Float[Tensor, "batch direction line step channel"],
    dt: Float[Tensor, "batch direction line step channel"],
    A: Float[Tensor, "direction channel state"],
    B: Float[Tensor, "batch direction line step state"],
    C: Float[Tensor, "batch direction line step state"],
) -> Float[Tensor, "batch direction line step channel"]:
    """``h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]``, ``y[t] = C[t] . h[t]``, and h = 0 before a line."""
    h = x.new_zeros(*x.shape[:3], *A.shape[1:])
    ys = []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(3), dt.unbind(3), B.unbind(3), C.unbind(3), strict=True):
        h = torch.exp(dt_t[..., None] * A[:, None]) * h + (dt_t * x_t)[..., None] * B_t[..., None, :]
        ys.append((h @ C_t[..., None])[..., 0])
    return torch.stack(ys, dim=3)


def _solve_lines(
    matrix: Float[Tensor, "batch line node line node"], load: Float[Tensor, "batch line node"]
) -> Float[Tensor, "batch line node"]:
    """Solves systems in which lines of nodes couple with themselves and with their neighbors."""
    lines, nodes = load.shape[1:]
    whole = matrix.reshape(-1, lines * nodes, lines * nodes)
    return multiscale._solve(whole, load.flatten(1), nodes).reshape(load.shape)


def _like_x(x: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _like_load(matrix: Tensor, load: Tensor) -> Tensor:  # noqa: ARG001
    return load.new_empty(load.shape)


_library.impl("scan_lines", _scan_lines, "CompositeExplicitAutograd")
_library.impl("solve_lines", _solve_lines, "CompositeExplicitAutograd")
torch.library.register_fake("mno::scan_lines", _like_x, lib=_library)
torch.library.register_fake("mno::solve_lines", _like_load, lib=_library)

scan_lines = torch.ops.mno.scan_lines.default
solve_lines = torch.ops.mno.solve_lines.default


class _Walk(NamedTuple):
    """How a direction meets the tokens.

    Attributes:
        resets: whether each row or column begins anew.
        down: whether it goes along columns.
        back: whether it begins at the end.
    """

    resets: bool
    down: bool
    back: bool


_WALKS: Final = {
    Direction.FORWARD: _Walk(resets=False, down=False, back=False),
    Direction.REVERSE: _Walk(resets=False, down=False, back=True),
    Direction.COLUMN_MAJOR: _Walk(resets=False, down=True, back=False),
    Direction.COLUMN_MAJOR_REVERSE: _Walk(resets=False, down=True, back=True),
    Direction.ROW_FORWARD: _Walk(resets=True, down=False, back=False),
    Direction.ROW_REVERSE: _Walk(resets=True, down=False, back=True),
    Direction.COLUMN_FORWARD: _Walk(resets=True, down=True, back=False),
    Direction.COLUMN_REVERSE: _Walk(resets=True, down=True, back=True),
}


def selective_scan_by_lines(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    directions: Sequence[int],
    grid: Sequence[int],
    save: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    """``mno::selective_scan`` by ``mno::scan_lines``; of its three results only y is computed."""
    if dt_bias is not None:
        dt = dt + dt_bias[:, None]
    if dt_softplus:
        dt = functional.softplus(dt)
    walks = [(_WALKS[Direction(direction)], k) for k, direction in enumerate(directions)]
    y = torch.zeros_like(x) if D is None else x * D.sum(0)
    # directions whose lines are equally many and equally long are scanned together
    for _, group in groupby(sorted(walks), lambda each: each[0].resets * (1 + each[0].down)):
        together = list(group)

        def laid(values: Tensor, each: Sequence[tuple[_Walk, int]] = together) -> Tensor:
            parts = (values if values.ndim == 3 else values[:, k] for _, k in each)
            return torch.stack(
                [_lines(part, walk, grid) for part, (walk, _) in zip(parts, each, strict=True)], dim=1
            )

        scanned = scan_lines(laid(x), laid(dt), torch.stack([A[k] for _, k in together]), laid(B), laid(C))
        for number, (walk, _) in enumerate(together):
            y = y + _tokens(scanned[:, number], walk, grid)
    if z is not None:
        y = y * functional.silu(z)
    nothing = x.new_zeros(x.shape[0], 0, A.shape[2], x.shape[2])
    lasts = sum(not walk.resets for walk, _ in walks)
    return y, nothing, x.new_zeros(x.shape[0], lasts, *A.shape[1:])


@final
class ScansByLines(TorchFunctionMode):
    """Within it every selective scan is one of lines."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, or what stands for it."""
        called = selective_scan_by_lines if function is selective_scan_op else function
        return called(*args, **(kwargs or {}))


def _lines(
    values: Float[Tensor, "batch token part"], walk: _Walk, grid: Sequence[int]
) -> Float[Tensor, "batch line step part"]:
    if walk.resets or walk.down:
        values = values.reshape(values.shape[0], *grid, values.shape[2])
        values = values.transpose(1, 2) if walk.down else values
        values = values if walk.resets else values.flatten(1, 2)[:, None]
    else:
        values = values[:, None]
    # of open sizes that were exchanged the tracer does not know how they lie in memory
    return values.contiguous().flip(2) if walk.back else values


def _tokens(
    lines: Float[Tensor, "batch line step part"], walk: _Walk, grid: Sequence[int]
) -> Float[Tensor, "batch token part"]:
    lines = lines.flip(2) if walk.back else lines
    if walk.down:
        lines = lines.reshape(lines.shape[0], grid[1], grid[0], lines.shape[3]).transpose(1, 2).contiguous()
    return lines.flatten(1, 2)

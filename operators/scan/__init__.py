"""The selective scan (S6) over the tokens of a grid, in several directions at once."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from operators.forward_mode import has_tangent
from operators.scan.chunked import Chunked
from operators.scan.dispatch import TABLE, Choice, choose, explain, set_default_backend, work_of
from operators.scan.mamba_ssm import MambaSsm
from operators.scan.native import Native
from operators.scan.op import forced, selective_scan_op
from operators.scan.path import Direction
from operators.scan.reference import Reference
from operators.scan.scan import AdjointBackend, Backend, InvalidScan, prepare
from operators.scan.triton import Triton

BACKENDS: Final[Mapping[str, Backend]] = {
    backend.name: backend for backend in (Reference(), Chunked(), Native(), Triton(), MambaSsm())
}

__all__ = [
    "BACKENDS",
    "TABLE",
    "Backend",
    "Choice",
    "Direction",
    "InvalidScan",
    "explain",
    "selective_scan",
    "set_default_backend",
]


def selective_scan(
    x: Float[Tensor, "batch token channel"],
    dt: Float[Tensor, "batch direction token channel"],
    A: Float[Tensor, "direction channel state"],
    B: Float[Tensor, "batch direction token state"],
    C: Float[Tensor, "batch direction token state"],
    D: Float[Tensor, "direction channel"] | None = None,
    z: Float[Tensor, "batch token channel"] | None = None,
    dt_bias: Float[Tensor, "direction channel"] | None = None,
    *,
    dt_softplus: bool = True,
    directions: Sequence[int] = (Direction.FORWARD,),
    grid: Sequence[int] = (),
    backend: str | None = None,
) -> Float[Tensor, "batch token channel"]:
    """Scans x in all directions, adds their y and gates the sum with silu(z): `operators.scan.scan.Scan`.

    Args:
        x: values.
        dt: step sizes; with ``dt_softplus`` those before the softplus.
        A: decay rates, <= 0.
        B: input weights.
        C: output weights.
        D: weights of the skip term.
        z: gate.
        dt_bias: added to dt.
        dt_softplus: whether softplus is applied to the step sizes.
        directions: of `Direction`.
        grid: (H, W), needed by directions that know rows or columns.
        backend: a name in `BACKENDS`; without it, the fastest that can. What carries tangents
            (`operators.forward_mode`) is scanned by ``torch``, whichever is named.
    """
    directions, grid = [int(k) for k in directions], list(grid)
    if torch.compiler.is_compiling():
        # the operation chooses when it runs
        return _through_op(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)
    if has_tangent(x, dt, A, B, C, D, z, dt_bias):
        # the others' kernels know nothing of tangents
        scan = prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)
        return BACKENDS["torch"].forward(scan, save=False).y
    sequences = x.shape[0] * len(directions) * x.shape[-1]
    chosen = choose(work_of(x.device, x.dtype, x.shape[1], sequences, A.shape[-1]), backend)
    # in inference mode there is nothing to differentiate: the operation would only cost its dispatch
    if not isinstance(chosen, AdjointBackend) or (torch.is_inference_mode_enabled() and type(x) is Tensor):
        scan = prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)
        return chosen.forward(scan, save=False).y
    with forced(chosen):
        return _through_op(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)


def _through_op(x: Tensor, *rest: Tensor | bool | Sequence[int] | None) -> Tensor:
    tensors = [t for t in (x, *rest) if isinstance(t, Tensor)]
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    # how many states are saved depends on the grid, and an exported program is to serve others
    save = save and not torch.compiler.is_exporting()
    y: Tensor = selective_scan_op(x, *rest, save)[0]
    return y

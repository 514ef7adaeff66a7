"""The operation ``mno::selective_scan``: opaque to export and compilation, with its own gradient."""

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor

from operators.scan.scan import AdjointBackend, Scan, prepare

_forced: ContextVar[AdjointBackend | None] = ContextVar("forced scan backend", default=None)


class forced:  # noqa: N801
    """Makes the operation use this backend inside the context; None leaves it the choice."""

    def __init__(self, backend: AdjointBackend | None) -> None:
        self._backend = backend

    def __enter__(self) -> None:
        self._token = _forced.set(self._backend)

    def __exit__(self, *_: object) -> None:
        _forced.reset(self._token)


def _backend(scan: Scan) -> AdjointBackend:
    from operators.scan.dispatch import choose_adjoint  # the table of backends imports this module

    return _forced.get() or choose_adjoint(scan)


_TENSORS = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias"
# not `torch.library.custom_op`: its first call imports the compiler, which takes seconds
# torch does not annotate these methods
_library: Any = cast(Any, torch.library.Library)("mno", "DEF")
_library.define(
    f"selective_scan({_TENSORS}, bool dt_softplus, int[] directions, SymInt[] grid, bool save)"
    " -> (Tensor y, Tensor ckpt, Tensor last_state)"
)
_library.define(
    f"selective_scan_backward(Tensor dy, {_TENSORS}, Tensor ckpt,"
    " bool dt_softplus, int[] directions, SymInt[] grid)"
    " -> (Tensor dx, Tensor ddt, Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor dz, Tensor ddt_bias)"
)


def _selective_scan(
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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gives y, the states before the chunks (if ``save``) and the states after the last token."""
    scan = prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)
    y, checkpoint, last_state = _backend(scan).forward(scan, save)
    return y, checkpoint, last_state


def _selective_scan_backward(
    dy: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    checkpoint: Tensor,
    dt_softplus: bool,
    directions: Sequence[int],
    grid: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gives the cotangents of x, dt, A, B, C, D, z and dt_bias; empty ones for absent inputs."""
    scan = prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)
    backend = _backend(scan)
    if checkpoint.shape[1] != scan.checkpoints:
        # the forward pass did not know that a gradient would be wanted
        checkpoint = backend.forward(scan, save=True).checkpoint
    gradients = backend.backward(scan, checkpoint, dy)
    inputs = (x, dt, A, B, C, D, z, dt_bias)
    dx, ddt, dA, dB, dC, dD, dz, dbias = (
        gradient if tensor is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip(gradients, inputs, strict=True)
    )
    return dx, ddt, dA, dB, dC, dD, dz, dbias


def _fake_selective_scan(
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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scan = prepare(x, dt, A, B, C, D, z, dt_bias, dt_softplus, directions, grid)
    batch, tokens, width = x.shape
    states = A.shape[2]
    state_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (
        x.new_empty(batch, tokens, width),
        x.new_empty(batch, scan.checkpoints if save else 0, states, width, dtype=state_dtype),
        x.new_empty(batch, scan.lasts, width, states, dtype=state_dtype),
    )


def _fake_selective_scan_backward(
    dy: Tensor,  # noqa: ARG001
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    checkpoint: Tensor,  # noqa: ARG001
    dt_softplus: bool,  # noqa: ARG001
    directions: Sequence[int],  # noqa: ARG001
    grid: Sequence[int],  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(x), like(dt), like(A), like(B), like(C), like(D), like(z), like(dt_bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, dt_softplus, directions, grid, _save = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.options = (dt_softplus, directions, grid)
    # the pass back uses the backend of the pass forward, also in the threads of autograd
    ctx.backend = _forced.get()


def _backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, checkpoint = ctx.saved_tensors
    with forced(ctx.backend):
        gradients = torch.ops.mno.selective_scan_backward(dy, *tensors, checkpoint, *ctx.options)
    kept = (None if t is None else g for g, t in zip(gradients, tensors, strict=True))
    return *kept, None, None, None, None


_library.impl("selective_scan", _selective_scan, "CompositeExplicitAutograd")
_library.impl("selective_scan_backward", _selective_scan_backward, "CompositeExplicitAutograd")
torch.library.register_fake("mno::selective_scan", _fake_selective_scan, lib=_library)
torch.library.register_fake("mno::selective_scan_backward", _fake_selective_scan_backward, lib=_library)
torch.library.register_autograd("mno::selective_scan", _backward, setup_context=_setup, lib=_library)
# the state of a long memory needs float32; on CUDA the kernels keep it so themselves
torch.library.register_autocast("mno::selective_scan", "cpu", torch.float32, lib=_library)

selective_scan_op = torch.ops.mno.selective_scan.default
selective_scan_backward_op = torch.ops.mno.selective_scan_backward.default

"""The recurrence as it is written, token by token: the truth that the other backends are tested against."""

import torch
from torch import Tensor
from torch.nn import functional

from operators.scan.scan import Backend, Result, Scan


class Reference(Backend):
    """Any device, any floating type, differentiable any number of times. Slow."""

    name = "reference"

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str | None:  # noqa: ARG002
        """Refuses nothing."""
        return None

    def forward(self, scan: Scan, save: bool) -> Result:  # noqa: ARG002
        """Scans direction by direction; there is nothing to save."""
        y = torch.zeros_like(scan.x)
        lasts = []
        for k, path in enumerate(scan.paths):
            order = path.tokens(scan.x.device)
            if not path.resets:
                order = order.reshape(1, -1)
            y_k, last = _scan_lines(scan, k, order)
            y = y + y_k
            if not path.resets:
                lasts.append(last[:, 0])
        if scan.z is not None:
            y = y * functional.silu(scan.z)
        batch, _, width = scan.x.shape
        states = scan.A.shape[2]
        last_state = torch.stack(lasts, 1) if lasts else scan.x.new_empty(batch, 0, width, states)
        return Result(y, scan.x.new_empty(batch, 0, states, width), last_state)


def step_sizes(scan: Scan, k: int) -> Tensor:
    """The step sizes of a direction, [batch token channel]."""
    dt = scan.dt[:, k]
    if scan.dt_bias is not None:
        dt = dt + scan.dt_bias[k]
    # torch's softplus is the identity above its threshold; 40 is beyond float64
    return functional.softplus(dt, threshold=40.0) if scan.dt_softplus else dt


def _scan_lines(scan: Scan, k: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Scans the sequences of tokens in the rows of ``order``; gives y in token order and the last states."""
    lines, steps = order.shape
    x = scan.x[:, order]  # [batch line step channel]
    dt = step_sizes(scan, k)[:, order]
    B, C = scan.B[:, k][:, order], scan.C[:, k][:, order]
    h = x.new_zeros(x.shape[0], lines, x.shape[-1], scan.A.shape[2])
    ys = []
    # unbind and not indexing: the gradient of an index is as large as the whole tensor
    for x_t, dt_t, B_t, C_t in zip(x.unbind(2), dt.unbind(2), B.unbind(2), C.unbind(2), strict=True):
        h = torch.exp(dt_t[..., None] * scan.A[k]) * h + (dt_t * x_t)[..., None] * B_t[:, :, None]
        ys.append((h * C_t[:, :, None]).sum(-1))
    y = torch.stack(ys, 2).reshape(x.shape[0], lines * steps, -1)
    back = torch.argsort(order.reshape(-1))
    y = y[:, back]
    return (y if scan.D is None else y + scan.D[k] * scan.x), h

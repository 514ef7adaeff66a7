"""S6 over scan plans."""

import itertools

import pytest
import torch

from operators.s6 import S6
from operators.scan_plan import PLANS


def _mixer(plan: str) -> S6:
    torch.manual_seed(0)
    return S6(channels=6, inner_channels=5, states=3, rank=2, plan=PLANS[plan]).double().eval()


def _unrolled(mixer: S6, tokens: torch.Tensor, relative_spacing: float) -> torch.Tensor:
    """The mixer with its recurrence written out token by token, direction by direction."""
    batch, ny, nx, _ = tokens.shape
    u, gate = mixer.project_in(tokens).chunk(2, dim=-1)
    u = torch.nn.functional.silu(mixer.local(u.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    selection = mixer.project_selection(u).reshape(batch, ny, nx, len(mixer.plan), -1)
    total = torch.zeros_like(u)
    for k, direction in enumerate(mixer.plan):
        low_rank, B, C = selection[..., k, :].split([mixer.rank, mixer.states, mixer.states], dim=-1)
        delta = torch.nn.functional.softplus(low_rank @ mixer.delta_weight[k].T + mixer.delta_bias[k])
        A = -mixer.log_A[k].exp()
        for line in _lines(direction.name, ny, nx):
            h = torch.zeros(batch, u.shape[-1], mixer.states, dtype=u.dtype)
            for y, x in line:
                step = relative_spacing * delta[:, y, x]
                h = torch.exp(step[..., None] * A) * h + (step * u[:, y, x])[..., None] * B[:, y, x, None]
                total[:, y, x] += (h * C[:, y, x, None]).sum(-1) + mixer.D[k] * u[:, y, x]
    out: torch.Tensor = mixer.project_out(total * torch.nn.functional.silu(gate))
    return out


def _lines(name: str, ny: int, nx: int) -> list[list[tuple[int, int]]]:
    rows = [[(y, x) for x in range(nx)] for y in range(ny)]
    columns = [[(y, x) for y in range(ny)] for x in range(nx)]
    whole = {
        "FORWARD": [list(itertools.chain(*rows))],
        "COLUMN_MAJOR": [list(itertools.chain(*columns))],
        "ROW_FORWARD": rows,
        "COLUMN_FORWARD": columns,
    }
    forward = name.replace("_REVERSE", "_FORWARD") if name.startswith(("ROW", "COLUMN_R")) else name
    forward = {"REVERSE": "FORWARD", "COLUMN_MAJOR_REVERSE": "COLUMN_MAJOR"}.get(name, forward)
    lines = whole[forward]
    return [line[::-1] for line in lines] if "REVERSE" in name else lines


@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_equals_its_recurrence_written_out(plan: str) -> None:
    mixer, tokens = _mixer(plan), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(tokens, 0.7), _unrolled(mixer, tokens, 0.7), rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_axial_scan_keeps_lines_apart() -> None:
    mixer, tokens = _mixer("axial"), torch.randn(1, 6, 7, 6, dtype=torch.float64)
    changed = tokens.clone()
    changed[0, 0, 0] += 1.0
    # the local convolution reaches one token around, the scans only that token's rows and columns
    difference = (mixer(tokens, 1.0) - mixer(changed, 1.0)).abs().sum(-1)[0]
    assert difference[2:, 2:].max() == 0
    assert difference[:2, :].min() > 0
    assert difference[:, :2].min() > 0


@torch.no_grad()
def test_refining_the_grid_refines_the_quadrature() -> None:
    """With ``delta`` scaled by the spacing, the mixed smooth field settles as tokens get denser."""
    mixer = _mixer("axial")
    # the 3 x 3 convolution is not a function of physical length: take its pointwise part alone
    mixer.local.weight[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0.0

    def mixed(n: int) -> torch.Tensor:
        s = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        field = torch.stack([torch.sin((i + 1) * s[:, None] + i * s[None, :]) for i in range(6)], dim=-1)
        values: torch.Tensor = mixer(field[None], 16.0 / n)[0]
        return values.reshape(8, n // 8, 8, n // 8, 6).mean(dim=(1, 3))

    coarse, middle, fine = mixed(16), mixed(32), mixed(64)
    ratio = (middle - fine).norm() / (coarse - middle).norm()
    assert ratio < 0.65  # first order would be one half

"""Parts of operators in forms that a traced graph can hold, and compute the same.

* a spectral convolution as products with the few columns of the Fourier matrix that it keeps: ONNX has no
  complex numbers;
* scans that know lengths with the lengths in their weights: a graph that is open in its grid has no number to
  compare with 1;
* the coarse flux balance with all samples solved at once;
* the shallow-water prediction with its steps counted by a loop of the graph.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from model_store.export.operations import solve_lines
from operators import darcy_stencil, multiscale, shallow_water_scheme
from operators.axial_mno import PATCH, AxialMno, torsion
from operators.axial_trunk import AxialTrunk
from operators.mixers.s6 import S6 as S6Mixer
from operators.points import Points
from operators.s6 import S6
from operators.shallow_water_mno import ShallowWaterMno
from operators.spectral_convolution import SpectralConvolution


def with_forms(module: nn.Module) -> nn.Module:
    """A copy whose parts are exchanged for their forms; the parameters are the module's own."""
    memo: dict[int, Any] = {id(value): value for value in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, memo)
    for name, part in [*copied.named_modules()]:
        for kind, form in FORMS.items():
            if isinstance(part, kind) and name:
                parent, _, child = name.rpartition(".")
                setattr(copied.get_submodule(parent), child, form(part))
    return copied


@final
class KeptModes(nn.Module):
    """``SpectralConvolution`` in real numbers, with the frequencies that it keeps."""

    def __init__(self, convolution: SpectralConvolution) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, fields: Float[Tensor, "batch input y x"]) -> Float[Tensor, "batch output y x"]:
        """See ``SpectralConvolution.forward``."""
        modes = self.convolution.modes
        ny, nx = fields.shape[-2:]
        ahead = torch.arange(modes, device=fields.device)
        # of the columns' frequencies the negative ones follow from the positive
        rows = torch.cat([ahead, ahead - modes])
        cos_y, sin_y = _waves(rows, ny, fields)
        cos_x, sin_x = _waves(ahead, nx, fields)
        # what a coarse grid lacks; and a frequency and its negative are one where both are the same wave
        kept_y = ((rows < ny // 2) & (-rows <= ny // 2)).to(fields.dtype)
        alone = (ahead == 0) | (2 * ahead == nx)
        kept_x = (2 * ahead <= nx).to(fields.dtype) * torch.where(alone, 1.0, 2.0).to(fields.dtype)
        real_x, imag_x = fields @ cos_x, -(fields @ sin_x)
        real, imag = cos_y.mT @ real_x + sin_y.mT @ imag_x, cos_y.mT @ imag_x - sin_y.mT @ real_x
        weight = torch.cat([*self.convolution.weight], dim=2) * kept_y[:, None, None]
        weight_real, weight_imag = weight[..., 0], weight[..., 1]
        mixed_real = _mixed(real, weight_real) - _mixed(imag, weight_imag)
        mixed_imag = _mixed(real, weight_imag) + _mixed(imag, weight_real)
        back_real = (cos_y @ mixed_real - sin_y @ mixed_imag) * kept_x
        back_imag = (cos_y @ mixed_imag + sin_y @ mixed_real) * kept_x
        out: Tensor = (back_real @ cos_x.mT - back_imag @ sin_x.mT) / (ny * nx)
        return out


def _waves(
    frequencies: Int[Tensor, " mode"], cells: int, like: Tensor
) -> tuple[Float[Tensor, "cell mode"], Float[Tensor, "cell mode"]]:
    """Cosine and sine of each frequency at the cells."""
    place = torch.arange(cells, device=like.device)
    # whole turns are taken off while the numbers are integers, and so exactly
    all_cells = torch.full_like(place, cells)
    turns = torch.remainder(place[:, None] * frequencies, all_cells[:, None]).to(like.dtype) / cells
    angles = 2 * math.pi * turns
    return angles.cos(), angles.sin()


def _mixed(
    modes: Float[Tensor, "batch input y x"], weight: Float[Tensor, "input output y x"]
) -> Float[Tensor, "batch output y x"]:
    """A matrix for each mode."""
    each = modes.permute(2, 3, 0, 1) @ weight.permute(2, 3, 0, 1)
    return each.permute(2, 3, 0, 1)


@final
class SpacedTrunk(nn.Module):
    """``AxialTrunk``, whose scans find the spacing of the tokens in their weights."""

    def __init__(self, trunk: AxialTrunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(
        self, fields: Float[Tensor, "batch field y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch token_y token_x channel"]:
        """See ``AxialTrunk.forward``."""
        unit = self.trunk.reference_spacing / self.trunk.PATCH
        weights = _spaced(self.trunk, _relative(spacing, unit, fields))
        tokens: Tensor = functional_call(self.trunk, weights, (fields, (unit, unit)))
        return tokens


@final
class SpacedMixer(nn.Module):
    """``operators.mixers.s6.S6``, which finds the spacing of the tokens in its weights."""

    def __init__(self, mixer: S6Mixer) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``."""
        unit, mixer = self.mixer.config.reference_spacing, self.mixer
        if unit is None:
            plain: Tensor = mixer(tokens, points, context, context_points)
            return plain
        relative = _relative(points.spacing, unit, tokens)
        share = _input_share(relative, mixer.rank, mixer.config.states)[:, None]
        weights = {"log_A": mixer.log_A + relative.log(), "select": mixer.select * share}
        if mixer.select_context is not None:
            weights["select_context"] = mixer.select_context * share
        here = points._replace(spacing=(unit, unit))
        mixed: Tensor = functional_call(mixer, weights, (tokens, here, context, context_points))
        return mixed


def _relative(spacing: tuple[float, float], unit: float, like: Tensor) -> Float[Tensor, ""]:
    """The spacing of the tokens over ``unit``."""
    return torch.full((), spacing[0] * spacing[1], dtype=like.dtype, device=like.device).sqrt() / unit


def _input_share(relative: Tensor, rank: int, states: int) -> Float[Tensor, " selection"]:
    """What the rows for the step, for B and for C are multiplied by, so that B is multiplied by ``relative``."""
    return torch.cat([relative.new_ones(rank), relative.expand(states), relative.new_ones(states)])


def _spaced(module: nn.Module, relative: Tensor) -> dict[str, Tensor]:
    """The weights of all scans in ``module``, for tokens that lie ``relative`` times as far apart."""
    weights = {}
    for name, scan in module.named_modules():
        if isinstance(scan, S6):
            share = _input_share(relative, scan.rank, scan.states).repeat(len(scan.plan))
            weights[f"{name}.log_A"] = scan.log_A + relative.log()
            weights[f"{name}.project_selection.weight"] = scan.project_selection.weight * share[:, None]
    return weights


@final
class OpenAxialMno(nn.Module):
    """``AxialMno`` on any grid that it takes, with any number of samples."""

    def __init__(self, operator: AxialMno) -> None:
        super().__init__()
        self.network = _LogRatio(operator)
        self.config = operator.config

    def forward(
        self, coefficient: Float[Tensor, "batch 1 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch 1 y x"]:
        """See ``AxialMno.forward``."""
        unit = self.config.reference_spacing / PATCH
        weights = _spaced(self.network, _relative(spacing, unit, coefficient))
        log_ratio = functional_call(self.network, weights, (coefficient, (unit, unit)))
        u = torsion(coefficient, spacing) * log_ratio.exp()
        faces = darcy_stencil.transmissibilities(coefficient, spacing, self.config.scheme)
        source = spacing[0] * spacing[1]
        jacobi = darcy_stencil.jacobi(faces, source)
        for sweeps in self.network.operator.relaxation.unbind():
            u = _balanced(u, faces, source, self.config.intervals)
            for omega in sweeps.unbind():
                u = torch.lerp(u, jacobi(u), omega)
        return u


@final
class _LogRatio(nn.Module):
    """The network of an ``AxialMno``."""

    def __init__(self, operator: AxialMno) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, coefficient: Tensor, spacing: tuple[float, float]) -> Float[Tensor, "batch 1 y x"]:
        return self.operator._log_ratio(coefficient, spacing)


def _balanced(
    v: Float[Tensor, "batch 1 y x"], faces: darcy_stencil.Transmissibilities, source: float, intervals: int
) -> Float[Tensor, "batch 1 y x"]:
    """``operators.multiscale.balance_fluxes`` with its systems handed over whole."""
    batch, (ny, nx) = v.shape[0], v.shape[-2:]
    y, x = (multiscale._side(cells, intervals, v.dtype, v.device) for cells in (ny, nx))
    assembly = multiscale._assembly(ny, nx, intervals, v.dtype, v.device)
    across_x = multiscale._sums(v[:, 0], faces.x_faces[:, 0], y, x)
    across_y = multiscale._sums(v[:, 0].mT, faces.y_faces[:, 0].mT, x, y)
    entries = torch.cat([across_x, across_y], dim=1)[:, assembly.source] * assembly.jump
    line = intervals + 1
    matrix = v.new_zeros(batch, line**4).scatter_add(1, assembly.target.expand(batch, -1), entries)
    load = source * torch.outer(y.prolongation.sum(0), x.prolongation.sum(0))
    c = solve_lines(matrix.reshape(batch, line, line, line, line), load.expand(batch, -1, -1))
    return v * (y.prolongation @ c @ x.prolongation.T)[:, None]


def _with_counted_steps(operator: ShallowWaterMno) -> ShallowWaterMno:
    """The operator with a prediction that a graph can hold."""

    def predict(
        state: Float[Tensor, "batch 3 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch frame 3 y x"]:
        ratios = operator.config.frame_interval / spacing[0], operator.config.frame_interval / spacing[1]
        return _frames(state, operator.frames, ratios, operator.config.walls)

    operator.predict = predict  # type: ignore[method-assign]
    return operator


def _frames(
    state: Float[Tensor, "batch 3 y x"],
    count: int,
    ratios: tuple[float, float],
    walls: shallow_water_scheme.Walls,
) -> Float[Tensor, "batch count 3 y x"]:
    """``operators.shallow_water_scheme.frames``; most intervals take the one step that stands before the loop."""
    marched = []
    for frame in range(count):
        state = shallow_water_scheme._no_faster(state)
        steps = shallow_water_scheme._steps(state, ratios)
        state = _part(state, steps, ratios, walls, x_first=frame % 2 == 0)
        state = _remaining(state, steps, ratios, walls, frame)
        marched.append(state)
    return torch.stack(marched, dim=1)


def _part(
    state: Tensor,
    steps: Tensor,
    ratios: tuple[float, float],
    walls: shallow_water_scheme.Walls,
    *,
    x_first: bool,
) -> Tensor:
    """One of ``steps`` equal steps of an interval."""
    y, x = (ratio / steps[:, None, None] for ratio in ratios)
    return shallow_water_scheme.step(state, (y, x), walls, x_first=x_first)


def _remaining(
    state: Tensor,
    steps: Tensor,
    ratios: tuple[float, float],
    walls: shallow_water_scheme.Walls,
    frame: int,
) -> Tensor:
    """The steps of an interval after its first one."""

    def is_behind(done: Tensor, state: Tensor, steps: Tensor) -> Tensor:  # noqa: ARG001
        return done < steps.max()

    def advance(done: Tensor, state: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slowed = shallow_water_scheme._no_faster(state)
        x_first, y_first = (_part(slowed, steps, ratios, walls, x_first=first) for first in (True, False))
        stepped = torch.where(torch.remainder(done + frame, 2.0) == 0, x_first, y_first)
        following = torch.where((done < steps)[:, None, None, None], stepped, state)
        return done + 1.0, following, steps.clone()

    done = torch.ones((), dtype=steps.dtype, device=steps.device)
    loop: Callable[..., Sequence[Tensor]] = torch._higher_order_ops.while_loop  # type: ignore[attr-defined]
    return loop(is_behind, advance, (done, state, steps))[1]


FORMS: Final[Mapping[type[nn.Module], Callable[[Any], nn.Module]]] = {
    SpectralConvolution: KeptModes,
    AxialTrunk: SpacedTrunk,
    S6Mixer: SpacedMixer,
    AxialMno: OpenAxialMno,
    ShallowWaterMno: _with_counted_steps,
}

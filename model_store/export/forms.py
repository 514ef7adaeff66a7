"""Parts of operators in forms that a traced graph can hold, and compute the same.

* a spectral convolution as products with the few columns of the Fourier matrix that it keeps: ONNX has no
  complex numbers;
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

from model_store.export.operations import solve_lines
from operators import darcy_stencil, multiscale, shallow_water_scheme
from operators.axial_mno import AxialMno, torsion
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
class OpenAxialMno(nn.Module):
    """``AxialMno`` with a balance that a graph can hold, on any grid that it takes."""

    source: Tensor
    target: Tensor
    jump: Tensor
    is_inner: Tensor

    def __init__(self, operator: AxialMno) -> None:
        super().__init__()
        self.operator = operator
        intervals = operator.config.intervals
        # on the least grid that has faces inside a coarse cell: of another one only the width differs
        known = multiscale._assembly(
            3 * intervals, 3 * intervals, intervals, torch.float32, torch.device("cpu")
        )
        is_inner = known.jump.abs() < 1
        constants = {
            "source": known.source,
            "target": known.target,
            "jump": torch.where(is_inner, 2 * known.jump, known.jump),
            "is_inner": is_inner,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, coefficient: Float[Tensor, "batch 1 y x"], spacing: tuple[float, float]
    ) -> Float[Tensor, "batch 1 y x"]:
        """See ``AxialMno.forward``."""
        u = torsion(coefficient, spacing) * self.operator._log_ratio(coefficient, spacing).exp()
        faces = darcy_stencil.transmissibilities(coefficient, spacing, self.operator.config.scheme)
        source = spacing[0] * spacing[1]
        jacobi = darcy_stencil.jacobi(faces, source)
        balanced = self._balance(coefficient, faces, source)
        for sweeps in self.operator.relaxation.unbind():
            u = balanced(u)
            for omega in sweeps.unbind():
                u = torch.lerp(u, jacobi(u), omega)
        return u

    def _balance(
        self, like: Float[Tensor, "batch 1 y x"], faces: darcy_stencil.Transmissibilities, source: float
    ) -> Callable[[Tensor], Tensor]:
        """``operators.multiscale.balance_fluxes`` with its systems handed over whole."""
        intervals, (ny, nx) = self.operator.config.intervals, like.shape[-2:]
        y, x = (multiscale._side(cells, intervals, like.dtype, like.device) for cells in (ny, nx))
        # the first half of the entries is across x
        over = torch.cat([torch.full((len(self.jump) // 2,), 1.0 / (n // intervals - 1)) for n in (nx, ny)])
        jump = torch.where(self.is_inner, self.jump * over, self.jump)
        load = source * torch.outer(y.prolongation.sum(0), x.prolongation.sum(0))
        line = intervals + 1

        def balanced(v: Tensor) -> Tensor:
            batch = v.shape[0]
            across_x = multiscale._sums(v[:, 0], faces.x_faces[:, 0], y, x)
            across_y = multiscale._sums(v[:, 0].mT, faces.y_faces[:, 0].mT, x, y)
            entries = torch.cat([across_x, across_y], dim=1)[:, self.source] * jump
            matrix = v.new_zeros(batch, line**4).scatter_add(1, self.target.expand(batch, -1), entries)
            c = solve_lines(matrix.reshape(batch, line, line, line, line), load.expand(batch, -1, -1))
            fine_c: Tensor = y.prolongation @ c @ x.prolongation.T
            return v * fine_c[:, None]

        return balanced


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
    """``operators.shallow_water_scheme.frames`` with all steps of all intervals in one loop."""
    number = torch.arange(count, dtype=state.dtype, device=state.device)

    def is_behind(frame: Tensor, *_: Tensor) -> Tensor:
        return frame < count

    def advance(
        frame: Tensor, done: Tensor, state: Tensor, steps: Tensor, marched: Tensor, y: Tensor, x: Tensor
    ) -> tuple[Tensor, ...]:
        slowed = shallow_water_scheme._no_faster(state)
        steps = torch.where(done == 0, shallow_water_scheme._steps(slowed, (y, x)), steps)
        part_y, part_x = (ratio / steps[:, None, None] for ratio in (y, x))
        x_first = torch.remainder(frame + done, 2.0) == 0
        # a sweep along x before or after the one along y
        swept = torch.where(x_first, shallow_water_scheme._sweep(slowed, part_x, -1, walls), slowed)
        swept = shallow_water_scheme._sweep(swept, part_y, -2, walls)
        stepped = torch.where(x_first, swept, shallow_water_scheme._sweep(swept, part_x, -1, walls))
        following = torch.where((done < steps)[:, None, None, None], stepped, state)
        ends = done + 1.0 >= steps.max()
        is_here = (ends & (number == frame))[:, None, None, None]
        return (
            torch.where(ends, frame + 1.0, frame),
            torch.where(ends, torch.zeros_like(done), done + 1.0),
            following,
            steps,
            torch.where(is_here, following[:, None], marched),
            y.clone(),
            x.clone(),
        )

    zero = torch.zeros((), dtype=state.dtype, device=state.device)
    steps = torch.ones_like(state[:, 0, 0, 0])
    nothing = torch.zeros_like(state)[:, None].repeat(1, count, 1, 1, 1)
    # numbers of an open grid: a loop takes them as tensors
    y, x = (torch.full((), ratio, dtype=state.dtype, device=state.device) for ratio in ratios)
    loop: Callable[..., Sequence[Tensor]] = torch._higher_order_ops.while_loop
    return loop(is_behind, advance, (zero, zero.clone(), state, steps, nothing, y, x))[4]


FORMS: Final[Mapping[type[nn.Module], Callable[[Any], nn.Module]]] = {
    SpectralConvolution: KeptModes,
    AxialMno: OpenAxialMno,
    ShallowWaterMno: _with_counted_steps,
}

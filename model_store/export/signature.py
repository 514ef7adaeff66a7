"""What an exported version takes and gives: names, units, and the grids that it is open to."""

import math
from typing import Final, Self, final

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.export import Dim
from torch.nn.functional import interpolate

from model_store.card import Card, FieldRecord
from model_store.store import LoadedVersion
from operators import EvolutionSurrogate, OperatorConfig
from operators.axial_mno import PATCH, AxialMnoConfig
from operators.neural_operator import EvolutionNeuralOperatorConfig, SteadyNeuralOperatorConfig
from operators.trunks.unet import UnetConfig

# cells of the random fields along each side before they are interpolated
_COARSE: Final = 6


@final
class Sides(BaseModel):
    """The numbers of cells that a grid may have along each side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiple: int
    least: int

    @classmethod
    def of(cls, config: OperatorConfig) -> Self:
        """Those that an operator takes."""
        if isinstance(config, AxialMnoConfig):
            multiple = math.lcm(PATCH, config.intervals)
            return cls(multiple=multiple, least=2 * config.intervals)
        if not isinstance(config, SteadyNeuralOperatorConfig | EvolutionNeuralOperatorConfig):
            return cls(multiple=PATCH, least=2 * PATCH)
        multiple = 2**config.trunk.levels if isinstance(config.trunk, UnetConfig) else 1
        return cls(multiple=multiple, least=max(4, 2 * multiple))

    def beyond(self, cells: int) -> int:
        """The least number of cells above ``cells`` that is one of them."""
        return max(-(-self.least // self.multiple), cells // self.multiple + 1) * self.multiple

    def dim(self, name: str) -> Dim:
        """The same for ``torch.export``."""
        least = -(-self.least // self.multiple)
        if self.multiple == 1:
            return Dim(name, min=least)
        dim: Dim = self.multiple * Dim(f"{name}_{self.multiple}", min=least)
        return dim

    def __str__(self) -> str:
        of = f"multiples of {self.multiple}, " if self.multiple > 1 else ""
        return f"{of}at least {self.beyond(self.least - 1)}"


@final
class Signature(BaseModel):
    """Names and shapes of the inputs and the output of a file; physical units throughout.

    Attributes:
        inputs: name -> its axes.
        outputs: the same.
        sides: grids that it takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]
    sides: Sides

    @classmethod
    def of(cls, version: LoadedVersion) -> Self:
        """What a version takes and gives."""
        sides = Sides.of(version.card.operator)
        if not isinstance(version.surrogate, EvolutionSurrogate):
            given, source = _steady_names(version.card)
            return cls(
                inputs={given: ("batch", "y", "x"), source: ("batch",)},
                outputs={version.card.outputs[0].name: ("batch", "y", "x")},
                sides=sides,
            )
        frame = ("field", "y", "x")
        inputs: dict[str, tuple[str, ...]] = {"history": ("batch", "time", *frame)}
        if version.surrogate.history == 1:
            inputs = {"state": ("batch", *frame)}
        return cls(inputs=inputs, outputs={"frames": ("batch", "frame", *frame)}, sides=sides)

    def dynamic_shapes(self) -> tuple[dict[int, Dim], ...]:
        """Which axes of the inputs are open, for ``torch.export``."""
        open_axes = {"batch": Dim("batch", min=1), "y": self.sides.dim("y"), "x": self.sides.dim("x")}
        return tuple(
            {place: open_axes[axis] for place, axis in enumerate(axes) if axis in open_axes}
            for axes in self.inputs.values()
        )


def _steady_names(card: Card) -> tuple[str, str]:
    names = [record.name for record in card.inputs]
    return names[0], names[1] if len(names) > 1 else "source"


def samples(version: LoadedVersion, batch: int, grid: tuple[int, int], seed: int) -> tuple[Tensor, ...]:
    """Smooth random inputs of a version, of the size that its problem has."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(*shape: int) -> Tensor:
        coarse = torch.randn(math.prod(shape), 1, _COARSE, _COARSE, generator=generator)
        return interpolate(coarse.clamp(-2, 2), size=grid, mode="bicubic").reshape(*shape, *grid)

    surrogate = version.surrogate
    if not isinstance(surrogate, EvolutionSurrogate):
        source = 0.5 + torch.rand(batch, generator=generator)
        return smooth(batch).exp(), source
    fields, history = surrogate.operator.fields, surrogate.history
    shift, scale = surrogate.shift, surrogate.scale
    if surrogate.operator.holds_equations:
        shift, scale = _usual(version.card.inputs)
    frames = shift[:, None, None] + scale[:, None, None] * smooth(batch, history, fields)
    return (frames[:, 0] if history == 1 else frames,)


def _usual(fields: tuple[FieldRecord, ...]) -> tuple[Tensor, Tensor]:
    """Mean and size of fields in the units of their problem: depths are around 1, all else around 0."""
    shift = torch.tensor([1.0 if field.unit == "m" else 0.0 for field in fields])
    return shift, torch.full_like(shift, 0.2)

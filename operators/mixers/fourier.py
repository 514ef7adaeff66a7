"""A convolution in Fourier space as a mixer: the Fourier neural operator's.

Li et al. 2020 (arXiv 2010.08895), equation 4.
``K v`` plus a linear map of the token itself, as in the paper's layer.
"""

from typing import Literal, final

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from operators.mixers.mixer import CannotMix, Mixer
from operators.points import Points
from operators.spectral_convolution import SpectralConvolution


@final
class FourierConfig(BaseModel):
    """Options of ``Fourier``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["fourier"] = "fourier"
    # frequencies that are kept along each axis
    modes: int = Field(default=12, gt=0)


@final
class Fourier(Mixer):
    """Mixes the tokens of a grid by a convolution over the whole of it."""

    def __init__(self, config: FourierConfig, channels: int, *, cross: bool = False) -> None:
        super().__init__()
        if cross:
            raise CannotMix("a convolution reads no context: expected a mixer with attention or S6")
        self.config = config
        self.convolution = SpectralConvolution(channels, channels, config.modes)
        self.pointwise = nn.Linear(channels, channels)

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,
        context: Float[Tensor, "batch context_token channel"] | None = None,
        context_points: Points | None = None,  # noqa: ARG002
    ) -> Float[Tensor, "batch token channel"]:
        """See ``Mixer.forward``."""
        if context is not None:
            raise CannotMix("a convolution reads no context: expected none")
        fields = tokens.mT.reshape(tokens.shape[0], -1, *points.grid)
        mixed: Tensor = self.convolution(fields).flatten(2).mT + self.pointwise(tokens)
        return mixed

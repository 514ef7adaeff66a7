"""The fields of a point off its own token alone."""

from typing import Literal, final

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from operators.heads.head import Head
from operators.points import Points
from operators.residual_mlp import ResidualMlp


@final
class PointwiseConfig(BaseModel):
    """Options of ``Pointwise``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["pointwise"] = "pointwise"
    # residual layers; the authors of GNOT have four
    layers: int = Field(default=4, ge=0)


@final
class Pointwise(Head):
    """A network that is the same at every point."""

    def __init__(self, config: PointwiseConfig, channels: int, frames: int, fields: int) -> None:
        super().__init__()
        self.frames, self.fields = frames, fields
        self.read = ResidualMlp(channels, channels, config.layers, frames * fields)

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        points: Points,  # noqa: ARG002
    ) -> Float[Tensor, "batch token frame field"]:
        """See ``Head.forward``."""
        read: Tensor = self.read(tokens)
        return read.reshape(*read.shape[:2], self.frames, self.fields)

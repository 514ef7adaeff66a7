"""The pointwise part of a neural-operator layer: the same small network at every token."""

from collections.abc import Callable, Mapping
from typing import Literal, final

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "relu", "silu", "geglu"]


@final
class FeedForwardConfig(BaseModel):
    """Options of ``FeedForward``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # width between its two layers
    hidden: int = Field(gt=0)
    # ``geglu``: one half of the hidden layer gates the other (Shazeer 2020, arXiv 2002.05202)
    activation: Activation = "gelu"
    dropout: float = Field(default=0.0, ge=0, lt=1)


def _geglu(hidden: Tensor) -> Tensor:
    values, gate = hidden.chunk(2, dim=-1)
    return values * functional.gelu(gate)


_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "geglu": _geglu,
}


@final
class FeedForward(nn.Module):
    """Two linear layers and what lies between them."""

    def __init__(self, config: FeedForwardConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        halves = 2 if config.activation == "geglu" else 1
        self.widen = nn.Linear(channels, halves * config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.narrow = nn.Linear(config.hidden, channels)

    def forward(self, tokens: Float[Tensor, "batch token channel"]) -> Float[Tensor, "batch token channel"]:
        """The same function of each token."""
        hidden = _ACTIVATIONS[self.config.activation](self.widen(tokens))
        out: Tensor = self.narrow(self.dropout(hidden))
        return out

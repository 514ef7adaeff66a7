"""Heads of neural operators. To add one, write ``operators/heads/<name>.py`` and a row below."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from operators.heads.head import Head
from operators.heads.pointwise import Pointwise, PointwiseConfig
from operators.heads.query_decoder import QueryDecoder, QueryDecoderConfig
from operators.heads.spectral import Spectral, SpectralConfig

HeadConfig = Annotated[PointwiseConfig | SpectralConfig | QueryDecoderConfig, Field(discriminator="kind")]

HEADS: Final[Mapping[str, Any]] = {
    "pointwise": Pointwise,
    "spectral": Spectral,
    "query_decoder": QueryDecoder,
}


def head_from_config(config: HeadConfig, channels: int, frames: int, fields: int) -> Head:
    """A freshly initialised head."""
    head: Head = HEADS[config.kind](config, channels, frames, fields)
    return head


__all__ = ["HEADS", "Head", "HeadConfig", "head_from_config"]

"""Trunks of neural operators. To add one, write ``operators/trunks/<name>.py`` and a row below."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from operators.trunks.fno import Fno, FnoConfig
from operators.trunks.gnot import Gnot, GnotConfig
from operators.trunks.stack import Stack, StackConfig
from operators.trunks.trunk import Trunk
from operators.trunks.unet import Unet, UnetConfig

TrunkConfig = Annotated[StackConfig | GnotConfig | FnoConfig | UnetConfig, Field(discriminator="kind")]

TRUNKS: Final[Mapping[str, Any]] = {"stack": Stack, "gnot": Gnot, "fno": Fno, "unet": Unet}


def trunk_from_config(config: TrunkConfig, values: int) -> Trunk:
    """A freshly initialised trunk for so many values at each point."""
    trunk: Trunk = TRUNKS[config.kind](config, values)
    return trunk


__all__ = ["TRUNKS", "Trunk", "TrunkConfig", "trunk_from_config"]

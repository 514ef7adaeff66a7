"""Mixers: the kernels of neural-operator layers, exchangeable within one architecture.

To add one, write ``operators/mixers/<name>.py`` and add a row to ``MixerConfig`` and to ``MIXERS``.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from operators.mixers.fourier import Fourier, FourierConfig
from operators.mixers.galerkin import Galerkin, GalerkinConfig
from operators.mixers.linear_l1 import LinearL1, LinearL1Config
from operators.mixers.mixer import CannotMix, Mixer
from operators.mixers.s6 import S6, S6Config
from operators.mixers.softmax import Softmax, SoftmaxConfig
from operators.mixers.ssd import Ssd, SsdConfig

MixerConfig = Annotated[
    SoftmaxConfig | LinearL1Config | GalerkinConfig | S6Config | SsdConfig | FourierConfig,
    Field(discriminator="kind"),
]

MIXERS: Final[Mapping[str, Any]] = {
    "softmax": Softmax,
    "linear_l1": LinearL1,
    "galerkin": Galerkin,
    "s6": S6,
    "ssd": Ssd,
    "fourier": Fourier,
}


def mixer_from_config(config: MixerConfig, channels: int, *, cross: bool = False) -> Mixer:
    """A freshly initialised mixer of so many channels.

    Raises:
        CannotMix: it cannot read a context, if ``cross`` asks for that.
    """
    mixer: Mixer = MIXERS[config.kind](config, channels, cross=cross)
    return mixer


__all__ = ["MIXERS", "CannotMix", "Mixer", "MixerConfig", "mixer_from_config"]

"""The operators of the literature as settings of one architecture, with their authors' sizes.

Each of the Mamba Neural Operator's three pairs (Cheng et al. 2024, arXiv 2410.02113) with both of its
ablations: softmax in place of the linear attention, and four scan directions in place of two. Their sizes are
those of the authors' code, to the last parameter; ``tests/operators/test_presets.py`` counts them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

from operators.feed_forward import FeedForwardConfig
from operators.heads import HeadConfig
from operators.heads.pointwise import PointwiseConfig
from operators.heads.query_decoder import QueryDecoderConfig
from operators.heads.spectral import SpectralConfig
from operators.mixers import MixerConfig
from operators.mixers.galerkin import GalerkinConfig
from operators.mixers.linear_l1 import LinearL1Config
from operators.mixers.s6 import S6Config
from operators.mixers.softmax import SoftmaxConfig
from operators.neural_operator import EvolutionNeuralOperatorConfig, SteadyNeuralOperatorConfig
from operators.trunks import TrunkConfig
from operators.trunks.fno import FnoConfig
from operators.trunks.gnot import GnotConfig
from operators.trunks.stack import StackConfig
from operators.trunks.unet import UnetConfig


@final
@dataclass(frozen=True)
class Task:
    """What an operator is to learn.

    Attributes:
        fields: of a frame.
        history: frames that are known; 0: the problem is steady.
        frames: that are asked for; 1 of a steady problem.
        walls: boundary conditions of a problem in time.
        spacing: of the cells that it is learnt on, in the unit of the points, to which the steps of scans
            that know lengths refer.
    """

    fields: int = 1
    history: int = 0
    frames: int = 1
    walls: str = ""
    spacing: float = 1 / 64

    @property
    def evolves(self) -> bool:
        """Whether it is a problem in time."""
        return self.history > 0


# trunk and head for a task
Parts = tuple[TrunkConfig, HeadConfig]

_FOUR: Final = S6Config(plan="cross4")


def _gnot(mixer: MixerConfig) -> Callable[[Task], Parts]:
    return lambda _: (GnotConfig(cross_mixer=mixer, mixer=mixer), PointwiseConfig())


def _galerkin(mixer: MixerConfig) -> Callable[[Task], Parts]:
    trunk = StackConfig(
        channels=256,
        mixers=(mixer,) * 6,
        feed_forward=FeedForwardConfig(hidden=256, activation="relu"),
        norm="none",
    )
    return lambda _: (trunk, SpectralConfig())


def _oformer(kind: type[GalerkinConfig | SoftmaxConfig] | None) -> Callable[[Task], Parts]:
    """``kind`` of the attention; None: S6 and Cross-S6."""

    def mixer(heads: int, size: int, scale: float) -> MixerConfig:
        if kind is None:
            return S6Config()
        return kind(
            heads=heads,
            head_size=size,
            bias=False,
            positions="rotary",
            rotary_scale=scale,
            norm="token",
            diagonal=1 / size,
        )

    def parts(task: Task) -> Parts:
        if task.evolves:
            width, decoder = 64, 64
            mixers = tuple(mixer(1, 64, scale) for scale in (32, 1))
            cross, frequencies, frequency, march = mixer(4, 64, 16), 64, 8.0, 128
        else:
            width, decoder = 96, 256
            mixers = tuple(mixer(4, 96, scale) for scale in (64, 16, 1, 1, 1, 1))
            cross, frequencies, frequency, march = mixer(4, 256, 16), 128, 0.5, None
        trunk = StackConfig(
            channels=width,
            mixers=mixers,
            feed_forward=FeedForwardConfig(hidden=width, activation="geglu", dropout=0.03),
            norm="stream",
            lift_bias=False,
            lift_dropout=0.05,
        )
        head = QueryDecoderConfig(
            channels=decoder,
            frequencies=frequencies,
            frequency=frequency,
            mixer=cross,
            feed_forward=FeedForwardConfig(hidden=decoder, activation="geglu"),
            march=march,
        )
        return trunk, head

    return parts


def _mno(task: Task) -> Parts:
    """Ours: axial scans that know lengths, each token counted once, norms before mixers, a spectral head."""
    mixer = S6Config(states=8, plan="axial", diagonal="once", reference_spacing=task.spacing)
    trunk = StackConfig(
        channels=64, mixers=(mixer,) * 4, feed_forward=FeedForwardConfig(hidden=128), norm="pre"
    )
    return trunk, SpectralConfig()


def _galerkin_attention(kind: type[GalerkinConfig | SoftmaxConfig]) -> MixerConfig:
    return kind(heads=4, positions="concat", norm="layer", diagonal=0.01)


PRESETS: Final[Mapping[str, Callable[[Task], Parts]]] = {
    "mno": _mno,
    "gnot": _gnot(LinearL1Config()),
    "gnot_softmax": _gnot(SoftmaxConfig()),
    "mamba_gnot": _gnot(S6Config()),
    "mamba_gnot_c4": _gnot(_FOUR),
    "galerkin": _galerkin(_galerkin_attention(GalerkinConfig)),
    "galerkin_softmax": _galerkin(_galerkin_attention(SoftmaxConfig)),
    "mamba_galerkin": _galerkin(S6Config()),
    "mamba_galerkin_c4": _galerkin(_FOUR),
    "oformer": _oformer(GalerkinConfig),
    "oformer_softmax": _oformer(SoftmaxConfig),
    "mamba_oformer": _oformer(None),
    # peers, with the sizes of PDEBench's (Takamoto et al. 2022, arXiv 2210.07182) or near them
    "fno": lambda _: (FnoConfig(), PointwiseConfig(layers=0)),
    "unet": lambda _: (UnetConfig(), PointwiseConfig(layers=0)),
}


def preset(name: str, task: Task) -> SteadyNeuralOperatorConfig | EvolutionNeuralOperatorConfig:
    """The configuration of a named operator for a task.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"expected one of {', '.join(PRESETS)}, got {name!r}")
    trunk, head = PRESETS[name](task)
    if not task.evolves:
        return SteadyNeuralOperatorConfig(trunk=trunk, head=head)
    return EvolutionNeuralOperatorConfig(
        fields=task.fields,
        walls=task.walls,
        history=task.history,
        frames=task.frames,
        trunk=trunk,
        head=head,
    )

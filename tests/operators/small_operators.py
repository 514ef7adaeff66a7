"""One small instance of every operator, for the tests that hold for all of them."""

from operators import OperatorConfig
from operators.autoregressive import AutoregressiveConfig
from operators.axial_mno import AxialMnoConfig
from operators.diffusion_reaction_mno import DiffusionReactionMnoConfig
from operators.feed_forward import FeedForwardConfig
from operators.heads.pointwise import PointwiseConfig
from operators.heads.spectral import SpectralConfig
from operators.latent_march import LatentMarchConfig
from operators.mixers.linear_l1 import LinearL1Config
from operators.mixers.s6 import S6Config
from operators.neural_operator import EvolutionNeuralOperatorConfig, SteadyNeuralOperatorConfig
from operators.one_shot import OneShotConfig
from operators.shallow_water_mno import ShallowWaterMnoConfig
from operators.trunks.gnot import GnotConfig
from operators.trunks.stack import StackConfig

TRUNK = {"channels": 16, "inner_channels": 8, "rank": 2, "blocks": 1}
GENERIC = {
    **TRUNK,
    "fields": 2,
    "walls": "periodic",
    "reference_spacing": 0.25,
    "history": 3,
    "frames": 5,
}

STACK = StackConfig(
    channels=16,
    mixers=(S6Config(states=2, plan="axial"), LinearL1Config(heads=2)),
    feed_forward=FeedForwardConfig(hidden=32),
)
GNOT = GnotConfig(
    channels=16,
    blocks=1,
    cross_mixer=S6Config(states=2),
    mixer=LinearL1Config(heads=2),
    feed_forward=FeedForwardConfig(hidden=32),
)

# one small instance per row of the operators' tables; a new architecture adds its own
SMALL: dict[str, OperatorConfig] = {
    **{
        plan: AxialMnoConfig(
            channels=16, inner_channels=16, states=4, rank=2, blocks=2, plan=plan, intervals=4
        )
        for plan in ("axial", "cross4", "bi_raster")
    },
    **{
        f"shallow_water_{walls}": ShallowWaterMnoConfig(**TRUNK, context=4, hidden=6, frames=4, walls=walls)
        for walls in ("outflow", "reflecting", "periodic")
    },
    "diffusion_reaction": DiffusionReactionMnoConfig(**TRUNK, context=4, hidden=6, frames=4),
    "one_shot": OneShotConfig(**GENERIC),
    "latent_march": LatentMarchConfig(**GENERIC),
    "autoregressive": AutoregressiveConfig(**GENERIC),
    "stack": SteadyNeuralOperatorConfig(trunk=STACK, head=SpectralConfig(channels=4, modes=3, hidden=8)),
    "gnot": SteadyNeuralOperatorConfig(trunk=GNOT, head=PointwiseConfig(layers=1)),
    **{
        predicts: EvolutionNeuralOperatorConfig(
            fields=2,
            walls="periodic",
            history=3,
            frames=5,
            predicts=predicts,
            trunk=STACK,
            head=PointwiseConfig(layers=1),
        )
        for predicts in ("frames", "increments")
    },
}

"""A store with a small model of shallow water, for the benchmarks of evolution models."""

from pathlib import Path

import torch
from small_models import small_card

from model_store import open_store
from operators import surrogate_from_config
from operators.shallow_water_mno import ShallowWaterMnoConfig
from problems import EVOLUTION_PROBLEMS, Grid

CONFIG = ShallowWaterMnoConfig(
    channels=8, inner_channels=8, states=2, rank=1, blocks=1, context=2, hidden=4, frames=2
)
WATER = EVOLUTION_PROBLEMS["shallow_water"]
SHAPE = (12, 16)
GRID = Grid(SHAPE, (3.75, 5.0), WATER.grid.origin)


def publish_small_water(folder: Path) -> str:
    """The URL of a store with one small model, as it is before training."""
    url = f"file:{folder}"
    torch.manual_seed(0)
    card = small_card(CONFIG, WATER.name, grids=(SHAPE,), extent=GRID.extent, walls="periodic")
    open_store(url).publish(WATER.name, surrogate_from_config(CONFIG).state_dict(), card)
    return url

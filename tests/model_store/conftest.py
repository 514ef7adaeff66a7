"""A small surrogate and its card, for every test of the store."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store import Card, FieldRecord, Store, open_store
from operators import Surrogate, surrogate_from_config
from operators.axial_mno import AxialMnoConfig

CONFIG = AxialMnoConfig(channels=8, inner_channels=8, states=2, rank=1, blocks=1)


@pytest.fixture(scope="session")
def surrogate() -> Surrogate:
    torch.manual_seed(0)
    surrogate = surrogate_from_config(CONFIG)
    with torch.no_grad():
        # a fresh head is zero: no error in the layers before it would show
        for parameter in surrogate.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return surrogate.eval()


@pytest.fixture
def state(surrogate: Surrogate) -> Mapping[str, Tensor]:
    return surrogate.state_dict()


@pytest.fixture(scope="session")
def card() -> Card:
    return Card(
        description="a model of the tests",
        problem="darcy",
        scheme="tpfa-harmonic-v1",
        operator=CONFIG,
        grids=((32, 32), (64, 32)),
        inputs=(FieldRecord(name="permeability", unit="m^2/(Pa s)"),),
        outputs=(FieldRecord(name="pressure", unit="Pa"),),
        training_hull={"contrast_min": 1.0, "contrast_max": 10.0},
        dataset={"sha256": "0" * 64, "samples": 4},
        run='[run]\nname = "test"\n',
        metrics={"pdebench": {"relative_l2_median": 0.01}},
        code_version="0.1.0",
        created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


@pytest.fixture(params=["memory:", "file:"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(request.param if request.param == "memory:" else f"file:{tmp_path / 'store'}")

"""Tiny versions to export."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from model_store import Card, FieldRecord, LoadedVersion, open_store
from operators import EvolutionSurrogate, OperatorConfig, surrogate_from_config

Publish = Callable[[OperatorConfig, str], LoadedVersion]
STEADY = (
    (FieldRecord(name="permeability", unit="m^2/(Pa s)"), FieldRecord(name="source", unit="1/s")),
    (FieldRecord(name="pressure", unit="Pa"),),
)
STATE = tuple(
    FieldRecord(name=name, unit=unit) for name, unit in (("h", "m"), ("hu", "m^2/s"), ("hv", "m^2/s"))
)


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Publishes an operator with random weights into the store of the test, and loads it."""
    store = open_store(str(tmp_path / "store"))

    def published(config: OperatorConfig, problem: str) -> LoadedVersion:
        torch.manual_seed(0)
        surrogate = surrogate_from_config(config)
        with torch.no_grad():
            # fresh heads are near zero, and fresh norms the identity
            for parameter in surrogate.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        inputs, outputs = STEADY
        if isinstance(surrogate, EvolutionSurrogate):
            inputs = outputs = STATE[: surrogate.operator.fields]
        card = Card(
            problem=problem,
            scheme="of the tests",
            operator=config,
            grids=((16, 16),),
            extent=(2.0, 1.0),
            inputs=inputs,
            outputs=outputs,
            frame_interval=None if problem == "darcy" else 0.01,
            walls=None if problem == "darcy" else "outflow",
            dataset={"sha256": "0" * 64},
            run="",
            metrics={},
            code_version="0.1.0",
            created=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        return store.load("tiny", store.publish("tiny", surrogate.state_dict(), card))

    return published

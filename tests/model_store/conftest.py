"""A small surrogate and its card, for every test of the store."""

import itertools
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import played_s3
import pytest
import seaweed
import torch
from obstore.store import MemoryStore
from torch import Tensor

from model_store import Card, FieldRecord, Store
from model_store.backends import Backend, open_backend
from model_store.backends.object import Handles, ObjectBackend
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


# every kind of backend there is, and object stores three times: without a network, played, and real
BACKENDS = ["file", "memory", "object", "s3-played", pytest.param("s3-seaweed", marks=pytest.mark.slow)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    match request.param:
        case "file":
            return open_backend(f"file:{tmp_path / 'new' / 'store'}")
        case "memory":
            return open_backend("memory:")
        case "object":
            return ObjectBackend("object-memory:", Handles.all_of(MemoryStore()))
        case "s3-played":
            request.getfixturevalue("played")
            return open_backend("s3://bucket/some/prefix")
        case _:
            return open_backend(request.getfixturevalue("bucket"))


@pytest.fixture
def store(backend: Backend) -> Store:
    return Store(backend)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[played_s3.PlayedS3]:
    """A small S3 server in this process, which the environment names; for what a test wants to go wrong."""
    with played_s3.running() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def seaweed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Seaweed]:
    """A real one, in a process of its own."""
    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


_buckets = itertools.count()


@pytest.fixture
def bucket(seaweed_server: seaweed.Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty place in the real one."""
    for name, value in seaweed_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{seaweed.BUCKET}/{next(_buckets)}"

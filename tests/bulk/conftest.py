"""Every engine there is; Ray's on a cluster of two nodes, each with a process tree of its own."""

import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import SMALL, small_card

from bulk.engine import Engine
from bulk.local_engine import InProcess, Processes
from bulk.ray_engine import RayActors, Share
from model_store import open_store
from operators import surrogate_from_config

# what a process of the cluster has in its environment
TOKEN = "TOKEN_OF_THE_TESTS_CLUSTER"


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with a small model of Darcy flow."""
    url = f"file:{tmp_path_factory.mktemp('bulk') / 'store'}"
    store = open_store(url)
    torch.manual_seed(0)
    card = small_card(training_hull={"contrast_min": 1.0, "contrast_max": 1e4})
    store.publish("darcy", surrogate_from_config(SMALL).state_dict(), card)
    store.set_alias("darcy", "production", 1, expected=None)
    return url


# a cluster that outlived its module would take its part of two cores from all later tests
@pytest.fixture(scope="module")
def token() -> str:
    """By which the processes of this cluster are told from all others."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def cluster(token: str) -> Iterator[Any]:
    """Two nodes of one core."""
    if sys.platform != "linux" or importlib.util.find_spec("ray") is None:
        pytest.skip("needs Linux and the package ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        # the nodes inherit it, and the actors from them; the tests that follow do not
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TOKEN, token)
            # an actor takes up what a crew is made of, as it does from an installed package
            patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
            for options in ({"include_dashboard": False}, {}):
                _add_node(cluster, options)
            cluster.wait_for_nodes(timeout=300)
        yield cluster
    finally:
        cluster.shutdown()


def _add_node(cluster: Any, options: Mapping[str, Any], tries: int = 10) -> None:
    """A node of one core; Ray gives one 30 s to start, which may be too short on a loaded machine."""
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **options)
    except Exception:  # Ray raises nothing more particular
        if tries == 1:
            raise
        _add_node(cluster, options, tries - 1)


ENGINES: dict[str, Callable[[pytest.FixtureRequest], Engine]] = {
    "in process": lambda _: InProcess(),
    "processes": lambda _: Processes([{}, {}]),
    "ray": lambda request: RayActors(
        request.getfixturevalue("cluster").address, None, Share(cores=1, device="cpu")
    ),
}


@pytest.fixture(params=["in process", "processes", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Engine:
    """One of all kinds."""
    return ENGINES[request.param](request)


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def mortal(request: pytest.FixtureRequest) -> Engine:
    """One whose workers can die alone."""
    return ENGINES[request.param](request)

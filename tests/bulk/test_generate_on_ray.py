"""``mno generate --engine ray`` makes the file that one process makes."""

from pathlib import Path
from typing import Any

import pytest

from bulk.ray_engine import RayActors, Share
from training.generate import DatasetFile, generate
from training.progress import silent
from training.steady_recipe import SteadyRecipe

RECIPE = SteadyRecipe(
    problem="darcy",
    family="log_normal",
    parameters={"contrast": (2.0, 100.0), "correlation_length": 0.2},
    seed=7,
    count=230,
    grid=(16, 16),
    extent=(1.0, 1.0),
    scheme="tpfa-harmonic-v1",
    source=2.0,
)


@pytest.mark.slow
def test_actors_make_what_one_process_makes(cluster: Any, tmp_path: Path) -> None:
    here, there = (DatasetFile(tmp_path / name / "x.hdf5", RECIPE) for name in ("here", "there"))
    generate([here], 1, silent)
    generate([there], 1, silent, RayActors(cluster.address, None, Share(device="cpu")))
    assert here.path.read_bytes() == there.path.read_bytes()
    assert [path.name for path in there.path.parent.iterdir()] == ["x.hdf5"]

"""What is tried out first is what requests ask for."""

from problems import EVOLUTION_PROBLEMS, Grid
from service.versions.served import ServedVersion
from service.workers.sample import plain_bucket
from service.workers.worker import Bucket


def test_a_steady_version_is_warmed_up_by_the_bucket_of_its_requests() -> None:
    version = ServedVersion(name="d", version=3, problem="darcy", scheme="s", grids=((8, 8),), extent=(1, 2))
    expected = Bucket("darcy", version.reference, "s", Grid((8, 8), (1.0, 2.0)), "float32")
    assert plain_bucket(version, (8, 8)) == expected


def test_a_version_that_names_no_walls_has_those_of_its_problem() -> None:
    water = EVOLUTION_PROBLEMS["shallow_water"]
    version = ServedVersion(
        name="w", version=1, problem="shallow_water", scheme="s", grids=((8, 8),), history=1, frames=4
    )
    bucket = plain_bucket(version, (8, 8))
    assert bucket.walls == water.walls[0]
    assert (bucket.task, bucket.frames, bucket.grid.origin) == ("advance", 4, water.grid.origin)
    named = version.model_copy(update={"walls": water.walls[-1]})
    assert plain_bucket(named, (8, 8)).walls == water.walls[-1]

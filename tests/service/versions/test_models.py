"""What is served, under which names, and when it may go."""

import asyncio
import gc

import numpy as np
import pytest

from model_store import Reference
from service.batching.batcher import Batcher
from service.errors import InvalidField, UnknownModel, UnsupportedGrid, WorkerLost
from service.versions.models import Models, Served, require_tested
from service.versions.routing import Route
from service.versions.served import ServedVersion
from service.workers.worker import ThreadWorker


def version(number: int, name: str = "darcy", problem: str = "darcy") -> ServedVersion:
    return ServedVersion(
        name=name, version=number, problem=problem, scheme="tpfa-harmonic-v1", grids=((32, 32),)
    )


def models(*versions: ServedVersion, **names: Route) -> Models:
    found = Models()
    for each in versions:
        found.add(each, Batcher(ThreadWorker(lambda _: pytest.fail("nobody asked"))))
    found.route({name.replace("__", "@"): route for name, route in names.items()})
    return found


def test_a_model_has_its_name_its_aliases_and_its_numbers() -> None:
    one = Route(name="darcy", main=1)
    served = models(version(1), version(2), darcy=one, darcy__production=one)
    for name in (None, "darcy", "darcy@production", "darcy@1"):
        assert str(served.find("darcy", name).version) == "darcy@1"
    assert str(served.find("darcy", "darcy@2").version) == "darcy@2"
    with pytest.raises(UnknownModel, match=r"darcy@production"):
        served.find("darcy", "darcy@3")
    with pytest.raises(UnknownModel, match="navier"):
        served.find("darcy", "navier" * 100)


def test_without_a_model_of_that_name_the_first_for_the_problem_answers() -> None:
    served = models(version(2, name="other"), other=Route(name="other", main=2))
    assert str(served.find("darcy", None).version) == "other@2"
    assert str(models(version(2)).find("darcy", None).version) == "darcy@2"
    with pytest.raises(UnknownModel, match="method=solver"):
        served.find("shallow_water", None)
    with pytest.raises(InvalidField, match="solves darcy"):
        served.find("shallow_water", "other@2")


def test_a_name_means_another_version_from_one_moment_to_the_next() -> None:
    served = models(version(1), version(2), darcy=Route(name="darcy", main=1))
    before = served.find("darcy", None)
    served.route({"darcy": Route(name="darcy", main=2)})
    assert [str(each.version) for each in (before, served.find("darcy", None))] == ["darcy@1", "darcy@2"]


def test_names_whose_worker_is_down_come_back_with_it() -> None:
    table = {"darcy": Route(name="darcy", main=1), "darcy@production": Route(name="darcy", main=1)}
    served = models(version(2, name="other"))
    served.route(table)
    for name in (None, "darcy", "darcy@production", "darcy@1"):
        with pytest.raises(WorkerLost, match="send the request again"):
            served.find("darcy", name)
    with pytest.raises(UnknownModel):
        served.find("darcy", "darcy@2")
    served.add(version(1), Batcher(ThreadWorker(lambda _: pytest.fail("nobody asked"))))
    for name in (None, *table, "darcy@1"):
        assert str(served.find("darcy", name).version) == "darcy@1"


def test_a_canary_answers_its_share_and_a_shadow_stands_beside_the_others() -> None:
    whole = Route(name="darcy", main=1, canary=2, weight=0.25, shadow=3)
    served = models(version(1), version(2), version(3), darcy=whole)
    found = [served.find("darcy", None, f"key {number}") for number in range(2000)]
    share = np.mean([each.version.version == 2 for each in found])
    assert share == pytest.approx(0.25, abs=0.04)
    assert {each.shadow.version.version for each in found if each.shadow} == {3}
    assert all(each.shadow for each in found)
    by_chance = {served.find("darcy", None).version.version for _ in range(200)}
    assert by_chance == {1, 2}
    assert served.find("darcy", "darcy@2").shadow is None


@pytest.mark.parametrize("missing", [2, 3])
def test_a_canary_or_shadow_that_is_not_loaded_is_as_if_it_was_not_named(missing: int) -> None:
    whole = Route(name="darcy", main=1, canary=2, weight=1.0, shadow=3)
    served = models(*(version(number) for number in (1, 2, 3) if number != missing), darcy=whole)
    found = served.find("darcy", None, "key")
    assert found.version.version == (1 if missing == 2 else 2)
    assert (found.shadow is None) == (missing == 3)


async def retire(served: Models, held: list[Served]) -> None:
    retired = served.remove(Reference("darcy", 1))
    waiting = asyncio.ensure_future(retired.released())
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
    assert not waiting.done()
    with pytest.raises(UnknownModel):
        served.find("darcy", "darcy@1")
    # the last to hold it may be in a thread
    await asyncio.to_thread(held.clear)
    await waiting


@pytest.mark.parametrize("wanted", ["darcy", "darcy@1"])
def test_a_version_that_was_replaced_goes_when_nobody_holds_it(wanted: str) -> None:
    async def story() -> None:
        served = models(version(1), version(2), darcy=Route(name="darcy", main=1))
        held = [served.find("darcy", wanted)]
        served.route({"darcy": Route(name="darcy", main=2)})
        await retire(served, held)

    asyncio.run(story())


def test_a_version_that_stands_in_the_shadow_is_held_by_those_who_answer() -> None:
    async def story() -> None:
        served = models(version(1), version(2), darcy=Route(name="darcy", main=2, shadow=1))
        held = [served.find("darcy", None)]
        served.route({"darcy": Route(name="darcy", main=2)})
        await retire(served, held)

    asyncio.run(story())


def test_the_same_number_may_come_back_while_it_still_goes() -> None:
    async def story() -> None:
        served = models(version(1), darcy=Route(name="darcy", main=1))
        before = served.find("darcy", None)
        retired = served.remove(Reference("darcy", 1))
        served.add(version(1), Batcher(ThreadWorker(lambda _: pytest.fail("nobody asked"))))
        assert served.find("darcy", None).queue is not before.queue
        del before
        await retired.released()

    asyncio.run(story())


def test_what_there_is_of_a_problem() -> None:
    served = models(version(1), version(1, name="water", problem="shallow_water"))
    assert served.of_problem("darcy") == ["darcy@1"]
    assert served.grids("darcy") == [(32, 32)]
    assert served.grids("diffusion_reaction") == []
    assert served.identify("darcy", None, solver=True) is None
    assert served.identify("darcy", "darcy@1", solver=False) == {
        "name": "darcy@1",
        "scheme": "tpfa-harmonic-v1",
        "sha256": {},
    }


def test_a_grid_that_was_not_tested_is_refused() -> None:
    require_tested(version(1), "permeability", (32, 32))
    with pytest.raises(UnsupportedGrid, match="32x32, got 16x16"):
        require_tested(version(1), "permeability", (16, 16))

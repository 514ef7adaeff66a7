"""What a service of one process says of the stores, and what it loads and unloads."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_store import Catalog, LoadedVersion, Store, open_catalog, open_store
from service.batching.batcher import Batcher
from service.errors import LoadFailed, UnknownModel
from service.processes.steward import table
from service.settings import InvalidSettings
from service.versions.local import LocalRepository, load_models
from service.versions.models import Models
from service.versions.repository import AliasTarget, ModelEntry, VersionState
from service.workers.worker import Batch, Compute, Solutions, ThreadWorker


def doubles(batch: Batch) -> Solutions:
    return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)


def queue(_: LoadedVersion) -> Batcher:
    return Batcher(ThreadWorker(doubles))


@pytest.fixture
def store(tmp_path: Path, store_url: str) -> Store:
    """``darcy@1`` and ``darcy@2``; production is the first."""
    folder = tmp_path / "store"
    shutil.copytree(store_url.removeprefix("file:"), folder)
    return open_store(str(folder))


def with_repository(
    store: Store, story: Callable[[LocalRepository, Models], Coroutine[Any, Any, None]]
) -> None:
    async def told() -> None:
        catalog = Catalog([store])
        models = load_models(catalog, ["darcy"], queue)
        await story(LocalRepository(catalog, models, queue), models)

    asyncio.run(told())


def test_the_names_of_a_model_are_its_own_its_aliases_and_its_numbers(store: Store) -> None:
    store.set_alias("darcy", "staging", 2, expected=None)
    models = load_models(Catalog([store]), ["darcy"], queue)
    found = {name: str(models.find("darcy", name).version) for name in models.table}
    assert found == {"darcy": "darcy@1", "darcy@production": "darcy@1", "darcy@staging": "darcy@2"}
    assert [str(version) for version in models.versions] == ["darcy@1", "darcy@2"]


def test_without_production_a_name_means_the_newest(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store/darcy/aliases.json").unlink()
    models = load_models(Catalog([store]), ["darcy"], queue)
    assert str(models.find("darcy", "darcy").version) == "darcy@2"


def test_a_canary_and_a_shadow_are_loaded_too(store: Store) -> None:
    store.publish("darcy", *published(store))
    target = AliasTarget.model_validate({"version": 1, "canary": {"version": 2, "weight": 0.5}, "shadow": 3})
    store.set_alias("darcy", "production", target, expected=1)
    models = load_models(Catalog([store]), ["darcy"], queue)
    assert [str(version) for version in models.versions] == ["darcy@1", "darcy@2", "darcy@3"]
    assert models.table["darcy"] == models.table["darcy@production"]


def published(store: Store) -> tuple[Any, Any]:
    loaded = store.load("darcy", 1)
    return loaded.surrogate.state_dict(), loaded.card


def test_without_a_wish_every_model_is_loaded(store_url: str) -> None:
    assert load_models(open_catalog(store_url), [], queue).of_problem("shallow_water")


@pytest.mark.parametrize("wanted", ["navier", "darcy@9", "darcy@staging", "../x"])
def test_a_model_that_cannot_be_loaded_stops_the_start(store: Store, wanted: str) -> None:
    with pytest.raises(InvalidSettings, match="cannot be loaded"):
        load_models(Catalog([store]), [wanted], queue)


@pytest.mark.parametrize("others", [False, True])
def test_a_store_that_is_gone_does_not_turn_a_model_into_its_namesake(
    store: Store, tmp_path: Path, others: bool
) -> None:
    other = open_store(str(shutil.copytree(tmp_path / "store", tmp_path / "other")))
    catalog = Catalog([store, other])
    wanted: dict[str, Any] = {"wanted": [] if others else ["darcy"], "others": others, "without": []}
    before = table(catalog, **wanted, stores_of={})
    assert before["stores_of"] == {"darcy": store.url}
    (tmp_path / "store/darcy").rename(tmp_path / "gone")
    after = table(catalog, **wanted, stores_of=before["stores_of"])
    assert after["table"] == {}
    assert "has darcy no more" in after["broken"]["darcy"]
    # who unloads it says that the other one will do
    assert table(catalog, **wanted, stores_of={})["stores_of"] == {"darcy": other.url}
    (tmp_path / "gone").rename(tmp_path / "store/darcy")
    assert table(catalog, **wanted, stores_of=before["stores_of"]) == before


def test_the_index_says_what_is_served(store: Store) -> None:
    async def story(repository: LocalRepository, _: Models) -> None:
        (entry,) = await repository.index()
        assert entry == ModelEntry(
            name="darcy",
            problem="darcy",
            aliases={"production": AliasTarget(version=1)},
            versions=(VersionState(version=1, state="READY"), VersionState(version=2, state="UNAVAILABLE")),
        )
        assert entry.summary() == {
            "name": "darcy",
            "problem": "darcy",
            "aliases": {"production": 1},
            "traffic": {},
            "versions": [1, 2],
            "loaded": [1],
        }
        # it travels between processes
        assert ModelEntry.model_validate(entry.model_dump(mode="json")) == entry
        described = await repository.describe("darcy")
        assert set(described["cards"]) == {"1", "2"}
        assert described["loaded"] == [1]
        with pytest.raises(UnknownModel):
            await repository.describe("navier")
        assert (await repository.readiness()).ready

    with_repository(store, story)


def test_a_damaged_card_is_one_row_of_the_index(store: Store, tmp_path: Path) -> None:
    async def story(repository: LocalRepository, _: Models) -> None:
        shutil.copytree(tmp_path / "store/darcy", tmp_path / "store/torn")
        for card in (tmp_path / "store/torn").glob("versions/*/card.json"):
            card.chmod(0o644)
            card.write_text("{")
        rows = {entry.name: entry.summary() for entry in await repository.index()}
        assert rows["darcy"]["versions"] == [1, 2]
        assert set(rows["torn"]) == {"name", "error"}
        assert str(tmp_path) not in rows["torn"]["error"]

    with_repository(store, story)


def test_two_who_load_the_same_load_it_once_and_who_unloads_waits_for_nobody(store: Store) -> None:
    async def story(repository: LocalRepository, models: Models) -> None:
        held = models.find("darcy", "darcy@1")
        await asyncio.gather(*(repository.load("darcy@2") for _ in range(2)))
        assert [str(version) for version in models.versions] == ["darcy@1", "darcy@2"]
        # a rollout still holds it
        await repository.unload("darcy")
        assert models.versions == ()
        del held

    with_repository(store, story)


def test_loading_follows_the_alias_and_unloading_ends_it(store: Store) -> None:
    async def story(repository: LocalRepository, models: Models) -> None:
        store.set_alias("darcy", "production", 2, expected=1)
        await repository.load("darcy")
        assert [str(version) for version in models.versions] == ["darcy@2"]
        assert str(models.find("darcy", "darcy@production").version) == "darcy@2"
        await repository.load("darcy@1")
        assert [str(version) for version in models.versions] == ["darcy@2", "darcy@1"]
        await repository.unload("darcy@1")
        await repository.unload("darcy")
        assert models.versions == ()
        with pytest.raises(UnknownModel, match="nothing to unload"):
            await repository.unload("darcy")
        with pytest.raises(UnknownModel):
            await repository.load("navier")

    with_repository(store, story)


def with_new_version(
    store: Store, compute: Compute, story: Callable[[LocalRepository, Models], Coroutine[Any, Any, None]]
) -> list[str]:
    """Production is about to be the second version, which ``compute`` answers for; those gone at the end."""
    gone: list[str] = []

    def make(version: LoadedVersion) -> Batcher:
        return Batcher(ThreadWorker(compute)) if version.reference.version == 2 else queue(version)

    async def told() -> None:
        catalog = Catalog([store])
        models = load_models(catalog, ["darcy"], make)
        repository = LocalRepository(catalog, models, make, gone=lambda version: gone.append(str(version)))
        store.set_alias("darcy", "production", 2, expected=1)
        await story(repository, models)
        while retiring := repository._retiring:
            await asyncio.gather(*retiring)

    asyncio.run(told())
    return gone


def test_a_version_is_warm_before_it_answers_anybody(store: Store) -> None:
    grids: list[tuple[int, int]] = []
    models_then: list[str] = []

    async def story(repository: LocalRepository, models: Models) -> None:
        def compute(batch: Batch) -> Solutions:
            grids.append(batch.bucket.grid.shape)
            models_then.append(str(models.find("darcy", "darcy").version))
            return doubles(batch)

        computing.append(compute)
        await repository.load("darcy")
        assert str(models.find("darcy", "darcy").version) == "darcy@2"

    computing: list[Compute] = []
    gone = with_new_version(store, lambda batch: computing[0](batch), story)
    assert grids == list(store.load("darcy", 2).card.grids)
    assert set(models_then) == {"darcy@1"}
    # nobody asked it anything any more
    assert gone == ["darcy@1"]


def breaks(_: Batch) -> Solutions:
    raise ArithmeticError("no such kernel")


def not_finite(batch: Batch) -> Solutions:
    return Solutions({"pressure": batch.fields["permeability"] * np.inf}, (0,) * batch.rows)


@pytest.mark.parametrize(("compute", "why"), [(breaks, "no such kernel"), (not_finite, "not finite")])
def test_a_version_that_cannot_be_warmed_up_leaves_the_old_one(
    store: Store, compute: Compute, why: str
) -> None:
    async def story(repository: LocalRepository, models: Models) -> None:
        with pytest.raises(LoadFailed, match=f"darcy@2 cannot be warmed up: .*{why}"):
            await repository.load("darcy")
        assert [str(version) for version in models.versions] == ["darcy@1"]

    assert with_new_version(store, compute, story) == []


def test_a_version_that_is_served_again_by_the_time_the_last_one_has_answered_is_not_gone(
    store: Store,
) -> None:
    async def story(repository: LocalRepository, models: Models) -> None:
        held = models.find("darcy", "darcy@1")
        await repository.unload("darcy")
        await repository.load("darcy@1")
        del held

    assert with_new_version(store, doubles, story) == []


def test_a_version_that_does_not_load_leaves_the_old_one(store: Store, tmp_path: Path) -> None:
    async def story(repository: LocalRepository, models: Models) -> None:
        weights = tmp_path / "store/darcy/versions/2/weights.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(b"")
        store.set_alias("darcy", "production", 2, expected=1)
        with pytest.raises(LoadFailed, match="damaged"):
            await repository.load("darcy")
        assert str(models.find("darcy", None).version) == "darcy@1"

    with_repository(store, story)

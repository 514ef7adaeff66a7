"""What is loaded, and under which names."""

import shutil
from pathlib import Path

import pytest

from model_store import open_catalog
from service.errors import InvalidField, UnknownModel
from service.models import load_models
from service.settings import InvalidSettings


def test_a_model_has_its_version_its_aliases_and_its_number(store_url: str) -> None:
    models = load_models(open_catalog(store_url), ["darcy"])
    for name in (None, "darcy", "darcy@production", "darcy@1"):
        assert str(models.find("darcy", name).reference) == "darcy@1"
    # version 2 has no alias and was not asked for
    with pytest.raises(UnknownModel, match="darcy@1"):
        models.find("darcy", "darcy@2")


def test_without_a_wish_every_model_is_loaded(store_url: str) -> None:
    assert load_models(open_catalog(store_url)).of_problem("darcy")


def test_without_a_model_of_that_name_the_first_for_the_problem_answers(store_url: str) -> None:
    models = load_models(open_catalog(store_url), ["darcy@2"])
    assert str(models.find("darcy", None).reference) == "darcy@2"
    with pytest.raises(UnknownModel, match="method=solver"):
        models.find("shallow_water", None)
    with pytest.raises(InvalidField, match="solves darcy"):
        models.find("shallow_water", "darcy@2")


@pytest.mark.parametrize("wanted", ["navier", "darcy@9", "darcy@staging", "../x"])
def test_a_model_that_cannot_be_loaded_stops_the_start(store_url: str, wanted: str) -> None:
    with pytest.raises(InvalidSettings, match="cannot be loaded"):
        load_models(open_catalog(store_url), [wanted])


def test_a_damaged_card_is_one_row_of_the_list(tmp_path: Path, store_url: str) -> None:
    store = tmp_path / "store"
    shutil.copytree(store_url.removeprefix("file:"), store)
    shutil.copytree(store / "darcy", store / "torn")
    for card in (store / "torn").glob("versions/*/card.json"):
        card.chmod(0o644)
        card.write_text("{")
    rows = {row["name"]: row for row in load_models(open_catalog(str(store)), ["darcy"]).catalog()}
    assert rows["darcy"]["versions"] == [1, 2]
    assert set(rows["torn"]) == {"name", "error"}
    assert str(tmp_path) not in rows["torn"]["error"]

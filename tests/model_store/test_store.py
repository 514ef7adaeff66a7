"""Publishing, aliases and loading."""

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model_store import (
    AliasMoved,
    Card,
    Catalog,
    CorruptStore,
    CorruptVersion,
    Reference,
    RefusedVersion,
    Store,
    UnknownModel,
    UnknownVersion,
    builtin_store,
    open_catalog,
    open_store,
)
from model_store.alias import AliasTarget, Canary
from operators import Surrogate

State = Mapping[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def published(folder: Path, state: State, card: Card) -> Path:
    """The folder of a version on disk, ``file:.../store`` holding it as darcy@1."""
    open_store(str(folder)).publish("darcy", state, card, {"notes.txt": b"a note"})
    return folder / "darcy/versions/1"


def test_numbers_count_from_one(store: Store, state: State, card: Card) -> None:
    assert [store.publish("darcy", state, card) for _ in range(3)] == [1, 2, 3]
    assert store.publish("other", state, card) == 1
    assert store.models() == ["darcy", "other"]
    assert store.versions("darcy") == [1, 2, 3]
    assert store.versions("unknown") == []


def test_eleven_comes_after_ten(store: Store, state: State, card: Card) -> None:
    for _ in range(11):
        newest = store.publish("darcy", state, card)
    assert newest == 11
    assert store.versions("darcy") == list(range(1, 12))


def test_loaded_equals_published(store: Store, surrogate: Surrogate, card: Card) -> None:
    number = store.publish("darcy", surrogate.state_dict(), card)
    loaded = store.load("darcy", number)
    assert loaded.reference == Reference("darcy", 1)
    assert not loaded.surrogate.training
    permeability = torch.rand(2, 1, 32, 32) + 0.5
    source = torch.tensor([1.0, 2.0])
    with torch.no_grad():
        assert torch.equal(loaded.surrogate(permeability, source), surrogate(permeability, source))


def test_card_comes_back_with_its_files(store: Store, state: State, card: Card) -> None:
    store.publish("darcy", state, card, {"report.txt": b"abc"})
    found = store.card("darcy", 1)
    assert set(found.files) == {"weights.safetensors", "report.txt"}
    assert found.files["report.txt"].size == 3
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert found.files["report.txt"].sha256 == expected
    assert found.model_copy(update={"files": {}}) == card


def test_layout_on_disk(published: Path) -> None:
    assert sorted(path.name for path in published.iterdir()) == [
        "card.json",
        "notes.txt",
        "weights.safetensors",
    ]
    assert json.loads((published / "card.json").read_text())["problem"] == "darcy"


def test_tensors_that_share_memory_can_be_published(store: Store, state: State, card: Card) -> None:
    whole = torch.cat([tensor.flatten() for tensor in state.values()])
    parts = whole.split([tensor.numel() for tensor in state.values()])
    views = {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}
    store.publish("darcy", views, card)
    loaded = store.load("darcy", 1).surrogate.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_state_that_does_not_fit_is_refused(store: Store, state: State, card: Card) -> None:
    name = next(iter(state))
    with pytest.raises(RefusedVersion, match="operator configuration"):
        store.publish("darcy", {key: value for key, value in state.items() if key != name}, card)
    with pytest.raises(RefusedVersion, match="operator configuration"):
        store.publish("darcy", {**state, "another": torch.zeros(1)}, card)
    with pytest.raises(RefusedVersion, match=f"NaN or infinity in {name}"):
        store.publish("darcy", {**state, name: torch.full_like(state[name], torch.nan)}, card)
    assert store.models() == []


@pytest.mark.parametrize("name", ["card.json", "weights.safetensors"])
def test_extra_files_leave_the_stores_own_alone(store: Store, state: State, card: Card, name: str) -> None:
    with pytest.raises(RefusedVersion, match=name):
        store.publish("darcy", state, card, {name: b""})


@pytest.mark.parametrize("name", ["", "../darcy", "Darcy", ".mno", "a/b"])
def test_unusable_names_are_refused(store: Store, state: State, card: Card, name: str) -> None:
    with pytest.raises(UnknownModel, match="expected"):
        store.publish(name, state, card)
    assert store.models() == []


def test_metric_that_is_not_a_number_is_refused(card: Card) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Card.model_validate({**card.model_dump(), "metrics": {"test": {"relative_l2": float("nan")}}})


def test_resolve(store: Store, state: State, card: Card) -> None:
    for _ in range(3):
        store.publish("darcy", state, card)
    assert store.resolve("darcy") == Reference("darcy", 3)
    store.set_alias("darcy", "production", 2, expected=None)
    assert store.resolve("darcy") == Reference("darcy", 2)
    assert store.resolve("darcy@production") == Reference("darcy", 2)
    assert store.resolve("darcy@3") == Reference("darcy", 3)
    assert store.resolve(Reference("darcy", 1)) == Reference("darcy", 1)


def test_resolve_says_what_there_is(store: Store, state: State, card: Card) -> None:
    store.publish("darcy", state, card)
    store.set_alias("darcy", "production", 1, expected=None)
    with pytest.raises(UnknownModel, match=r"\['darcy'\].*'wave'"):
        store.resolve("wave")
    with pytest.raises(UnknownVersion, match=r"\[1\].*2"):
        store.resolve("darcy@2")
    with pytest.raises(UnknownVersion, match=r"\['production'\].*'staging'"):
        store.resolve("darcy@staging")
    with pytest.raises(UnknownVersion, match="darcy@2"):
        store.load("darcy", 2)
    with pytest.raises(UnknownVersion, match="darcy@2"):
        store.card("darcy", 2)


def test_alias_moves_only_from_where_it_is_expected(store: Store, state: State, card: Card) -> None:
    for _ in range(2):
        store.publish("darcy", state, card)
    with pytest.raises(AliasMoved, match="no version"):
        store.set_alias("darcy", "production", 1, expected=2)
    store.set_alias("darcy", "production", 1, expected=None)
    with pytest.raises(AliasMoved, match="found it at 1"):
        store.set_alias("darcy", "production", 2, expected=None)
    store.set_alias("darcy", "production", 2, expected=1)
    assert store.aliases("darcy") == {"production": 2}


def test_alias_needs_its_version_and_a_name(store: Store, state: State, card: Card) -> None:
    store.publish("darcy", state, card)
    with pytest.raises(UnknownVersion, match=r"\[1\]"):
        store.set_alias("darcy", "production", 2, expected=None)
    with pytest.raises(UnknownModel, match="expected"):
        store.set_alias("darcy", "3", 1, expected=None)
    assert store.aliases("darcy") == {}


def test_different_aliases_moved_at_once_are_both_there(store: Store, state: State, card: Card) -> None:
    store.publish("darcy", state, card)
    names = [f"alias-{number}" for number in range(8)]
    threads = [threading.Thread(target=store.set_alias, args=("darcy", name, 1, None)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.aliases("darcy") == dict.fromkeys(names, 1)


def test_racing_threads_get_numbers_without_gaps(store: Store, state: State, card: Card) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(store.publish("darcy", state, card) for _ in range(3)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == store.versions("darcy") == list(range(1, 13))


def test_changed_weights_are_noticed(published: Path, folder: Path) -> None:
    weights = published / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    rewrite(weights, bytes(data))
    expect_corrupt(folder, r"weights\.safetensors is damaged.*SHA-256")


def test_truncated_weights_are_noticed(published: Path, folder: Path) -> None:
    weights = published / "weights.safetensors"
    rewrite(weights, weights.read_bytes()[:-10])
    expect_corrupt(folder, r"weights\.safetensors is damaged: expected \d+ bytes")


@pytest.mark.parametrize("name", ["weights.safetensors", "notes.txt"])
def test_missing_file_is_noticed(published: Path, folder: Path, name: str) -> None:
    (published / name).unlink()
    expect_corrupt(folder, f"lacks {name}")


def test_file_that_the_card_does_not_list_is_noticed(published: Path, folder: Path) -> None:
    (published / "evil.pkl").write_bytes(b"")
    expect_corrupt(folder, r"evil\.pkl")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"problem": "darcy"}'])
def test_damaged_card_is_noticed(published: Path, folder: Path, data: bytes) -> None:
    rewrite(published / "card.json", data)
    expect_corrupt(folder, r"card\.json")


def test_card_with_unknown_entries_is_refused(published: Path, folder: Path) -> None:
    content = json.loads((published / "card.json").read_text())
    rewrite(published / "card.json", json.dumps(content | {"surprise": 1}).encode())
    expect_corrupt(folder, "surprise")


def test_pickled_weights_with_a_matching_hash_are_not_unpickled(published: Path, folder: Path) -> None:
    # a pickle that would write a file; the card is forged to agree with it
    target = folder / "executed"
    pickled = b"cbuiltins\nexec\n(S'open(%r, \"w\")'\ntR." % str(target).encode()
    rewrite(published / "weights.safetensors", pickled)
    forge(published)
    with pytest.raises(CorruptVersion, match="does not load"):
        open_store(str(folder)).load("darcy", 1)
    assert not target.exists()


def test_weights_of_another_architecture_with_a_matching_hash_are_noticed(
    published: Path, folder: Path
) -> None:
    content = json.loads((published / "card.json").read_text())
    content["operator"]["channels"] = 16
    rewrite(published / "card.json", json.dumps(content).encode())
    with pytest.raises(CorruptVersion, match="does not load"):
        open_store(str(folder)).load("darcy", 1)


def test_an_alias_may_give_a_share_to_a_canary_and_have_a_shadow(
    folder: Path, state: State, card: Card
) -> None:
    store = open_store(str(folder))
    for _ in range(3):
        store.publish("darcy", state, card)
    whole = AliasTarget(version=1, canary=Canary(version=2, weight=0.05), shadow=3)
    store.set_alias("darcy", "production", whole, expected=None)
    store.set_alias("darcy", "staging", 2, expected=None)
    assert store.targets("darcy") == {"production": whole, "staging": AliasTarget(version=2)}
    # everybody else sees the version that answers the others
    assert store.aliases("darcy") == {"production": 1, "staging": 2}
    assert store.resolve("darcy") == Reference("darcy", 1)
    # and a bare number stays one, for programs of before
    assert json.loads((folder / "darcy/aliases.json").read_text()) == {
        "production": {"version": 1, "canary": {"version": 2, "weight": 0.05}, "shadow": 3},
        "staging": 2,
    }


def test_a_canary_moves_only_from_where_it_is_expected(store: Store, state: State, card: Card) -> None:
    for _ in range(2):
        store.publish("darcy", state, card)
    store.set_alias("darcy", "production", 1, expected=None)
    canary = AliasTarget(version=1, canary=Canary(version=2, weight=0.5))
    store.set_alias("darcy", "production", canary, expected=AliasTarget(version=1))
    with pytest.raises(AliasMoved, match="canary 2=50%"):
        store.set_alias("darcy", "production", 2, expected=AliasTarget(version=1))
    # a number stands for the version, whatever is beside it
    store.set_alias("darcy", "production", 2, expected=1)
    assert store.targets("darcy") == {"production": AliasTarget(version=2)}


@pytest.mark.parametrize("beside", [{"canary": Canary(version=9, weight=0.5)}, {"shadow": 9}])
def test_a_canary_or_shadow_needs_its_version(
    store: Store, state: State, card: Card, beside: dict[str, Any]
) -> None:
    store.publish("darcy", state, card)
    with pytest.raises(UnknownVersion, match="got 9"):
        store.set_alias("darcy", "production", AliasTarget(version=1, **beside), expected=None)


@pytest.mark.parametrize("text", ["4", "4=0%", "4=101%", "0=5%", "4=5", "four=5%", "4=nan%", ""])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    assert str(Canary.parse("4=5%")) == "4=5%"
    assert Canary.parse("4=0.5%").weight == 0.005
    with pytest.raises(ValueError, match="such as 4=5%"):
        Canary.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"production": {"version": 0}}',
        '{"production": {"version": 1, "canary": {"version": 2, "weight": 2}}}',
        '{"production": {"version": 1, "other": 2}}',
        '{"production": true}',
    ],
)
def test_damaged_targets_are_noticed(published: Path, folder: Path, text: str) -> None:
    (published.parents[1] / "aliases.json").write_text(text)
    with pytest.raises(CorruptStore, match=r"aliases\.json"):
        open_store(str(folder)).targets("darcy")


def test_damaged_aliases_are_noticed(published: Path, folder: Path) -> None:
    (published.parents[1] / "aliases.json").write_text('{"production": "1; rm"}')
    with pytest.raises(CorruptStore, match="damaged"):
        open_store(str(folder)).resolve("darcy")


def test_folder_without_a_card_is_no_version(published: Path, folder: Path, state: State, card: Card) -> None:
    half = published.parent / "2"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    store = open_store(str(folder))
    assert store.versions("darcy") == [1]
    with pytest.raises(CorruptStore, match="mno store gc"):
        store.publish("darcy", state, card)
    assert store.gc() == ["darcy/versions/2"]
    assert store.publish("darcy", state, card) == 2


def test_copy_keeps_the_bytes(published: Path, folder: Path, tmp_path: Path) -> None:
    here, there = open_store(str(folder)), open_store(str(tmp_path / "there"))
    assert here.copy(Reference("darcy", 1), there) == 1
    assert here.copy(Reference("darcy", 1), there, "renamed") == 1
    copied = tmp_path / "there/darcy/versions/1"
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == {
        p.name: p.read_bytes() for p in published.iterdir()
    }
    there.verify("renamed", 1)


@pytest.mark.usefixtures("published")
def test_copy_twice_is_one_version(folder: Path) -> None:
    here, there = open_store(str(folder)), open_store("memory:")
    assert [here.copy(Reference("darcy", 1), there) for _ in range(2)] == [1, 1]
    assert there.versions("darcy") == [1]


def test_damaged_version_is_not_copied(published: Path, folder: Path) -> None:
    (published / "notes.txt").unlink()
    there = open_store("memory:")
    with pytest.raises(CorruptVersion):
        open_store(str(folder)).copy(Reference("darcy", 1), there)
    assert there.models() == []


def test_a_users_model_hides_a_later_store(state: State, card: Card) -> None:
    user, shipped = open_store("memory:"), open_store("memory:")
    for _ in range(2):
        shipped.publish("darcy", state, card)
    shipped.publish("wave", state, card)
    catalog = Catalog([user, shipped])
    assert catalog.resolve("darcy") == Reference("darcy", 2)
    user.publish("darcy", state, card)
    assert catalog.resolve("darcy") == Reference("darcy", 1)
    with pytest.raises(UnknownVersion):
        catalog.resolve("darcy@2")
    assert catalog.models() == ["darcy", "wave"]
    assert catalog.versions("wave") == [1]
    with pytest.raises(UnknownModel):
        catalog.load("heat", 1)


def test_catalog_ends_with_the_built_in_models(tmp_path: Path) -> None:
    assert [store.url for store in open_catalog(None).stores] == ["builtin:"]
    assert [store.url for store in open_catalog(str(tmp_path)).stores] == [f"file:{tmp_path}", "builtin:"]


def test_built_in_versions_are_whole() -> None:
    store = builtin_store()
    for name in store.models():
        for version in store.versions(name):
            store.load(name, version)


def rewrite(path: Path, data: bytes) -> None:
    """Change a published file in place, as nobody should."""
    path.chmod(0o644)
    path.write_bytes(data)


def forge(version: Path) -> None:
    """Make the card agree with the weights as they are."""
    data = (version / "weights.safetensors").read_bytes()
    content = json.loads((version / "card.json").read_text())
    content["files"]["weights.safetensors"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    rewrite(version / "card.json", json.dumps(content).encode())


def expect_corrupt(folder: Path, message: str) -> None:
    store = open_store(str(folder))
    with pytest.raises(CorruptVersion, match=message):
        store.load("darcy", 1)
    with pytest.raises(CorruptVersion, match=message):
        store.verify("darcy", 1)

"""A publisher that dies, or races with others, never leaves a half version or a gap."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import seaweed
from safetensors.torch import save_file
from torch import Tensor

from model_store import Card, Store, open_store
from operators import Surrogate

ROOT = Path(__file__).parents[2]

# one import of torch in a process of its own, some hundred synced files
pytestmark = pytest.mark.slow


class Publishers:
    """The process of ``publishers.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout

    def begin(self, work: str, store: Store) -> None:
        print(json.dumps([work, store.url]), file=self._input, flush=True)

    def answer(self) -> list[int]:
        """What the work returned, once it is done."""
        answer: int | list[int] = json.loads(self._output.readline())
        return answer if isinstance(answer, list) else [answer]

    def is_done(self) -> bool:
        return select.select([self._output], [], [], 0)[0] != []


@pytest.fixture(scope="module")
def publishers(
    tmp_path_factory: pytest.TempPathFactory,
    surrogate: Surrogate,
    card: Card,
    seaweed_server: seaweed.Seaweed,
) -> Iterator[Publishers]:
    folder = tmp_path_factory.mktemp("publishers")
    (folder / "card.json").write_bytes(card.to_json())
    save_file(surrogate.state_dict(), folder / "state.safetensors")
    command = [sys.executable, Path(__file__).with_name("publishers.py"), folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | seaweed_server.environment()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        yield Publishers(process)
        # its input ends, so it does
        process.communicate()


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(
        str(tmp_path / "store") if request.param == "file" else request.getfixturevalue("bucket")
    )


def check_whole(store: Store) -> int:
    """Every version verifies, there is no gap, and the aliases can be read; returns how many there are."""
    versions = store.versions("darcy")
    assert versions == list(range(1, len(versions) + 1))
    for version in versions:
        store.verify("darcy", version)
    assert set(store.aliases("darcy").values()) <= set(versions)
    return len(versions)


def check_usable(store: Store, state: Mapping[str, Tensor], card: Card) -> None:
    """Publishing goes on with the next number, and gc removes all leftovers but no version."""
    before = check_whole(store)
    number = store.publish("darcy", state, card)
    # in an object store, what a killed publisher had claimed is finished first
    assert number in (before + 1, before + 2)
    store.gc()
    assert check_whole(store) == number
    assert store.gc() == []


@pytest.mark.parametrize("store", ["file"], indirect=True)
def test_killed_at_every_step(
    publishers: Publishers, store: Store, tmp_path: Path, state: Mapping[str, Tensor], card: Card
) -> None:
    publishers.begin("die_at_every_step", store)
    (steps,) = publishers.answer()
    # fewer would mean that the hook no longer sees what publishing does
    assert steps > 15
    # those that died after the rename had published
    assert 1 < check_whole(store) < steps
    assert list((tmp_path / "store/.mno/staging").iterdir())
    check_usable(store, state, card)


def test_killed_at_random_moments(
    publishers: Publishers, store: Store, state: Mapping[str, Tensor], card: Card
) -> None:
    publishers.begin("die_at_random_moments", store)
    while not publishers.is_done():
        # readers see whole versions at any time
        check_whole(store)
    assert publishers.answer() == [20]
    assert check_whole(store) > 0
    check_usable(store, state, card)


def test_racing_processes_get_numbers_without_gaps(publishers: Publishers, store: Store) -> None:
    publishers.begin("race", store)
    assert sorted(publishers.answer()) == list(range(1, 16))
    assert check_whole(store) == 15


def test_gc_leaves_running_publishers_alone(publishers: Publishers, store: Store) -> None:
    publishers.begin("race", store)
    while not publishers.is_done():
        assert store.gc() == []
    assert sorted(publishers.answer()) == list(range(1, 16))
    assert check_whole(store) == 15

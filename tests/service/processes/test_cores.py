"""How many threads a model gets."""

import os
from pathlib import Path

import pytest

from service.processes.cores import model_threads


@pytest.mark.parametrize(
    ("limits", "threads"),
    [
        ({}, 7),
        ({"": "max 100000", "a": "max 100000", "a/b": "max 100000"}, 7),
        ({"a/b": "400000 100000"}, 3),
        ({"a": "250000 100000", "a/b": "400000 100000"}, 2),
        ({"a/b": "50000 100000"}, 1),
        ({"a/b": "nonsense"}, 7),
    ],
)
def test_a_model_gets_the_cores_that_are_granted_but_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, str], threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    (tmp_path / "groups/a/b").mkdir(parents=True)
    for group, limit in limits.items():
        (tmp_path / "groups" / group / "cpu.max").write_text(limit)
    own = tmp_path / "own"
    own.write_text("4:memory:/else\n0::/a/b\n")
    assert model_threads(tmp_path / "groups", own) == threads

"""Results that wait for the last: whole or absent, one job's alone, one process' at a time."""

import os
from pathlib import Path

import folder_buckets
import numpy as np
import pytest

from bulk.chunks import BucketChunks, OtherJob, open_chunks, publish
from bulk.objects import RemotePlace

RECIPE = {"input": "fields.h5", "chunk": 4}


def test_what_was_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    values = np.arange(6.0).reshape(2, 3)
    with open_chunks(output, RECIPE) as chunks:
        assert chunks.done() == frozenset()
        chunks.put(17, {"answers": values, "name": np.array("pressure")})
    with open_chunks(output, RECIPE) as chunks:
        assert chunks.done() == {17}
        found = chunks.get(17)
        assert np.array_equal(found["answers"], values)
        assert str(found["name"]) == "pressure"
        chunks.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_no_result(tmp_path: Path) -> None:
    with open_chunks(tmp_path / "out.h5", RECIPE) as chunks:
        chunks.put(3, {"answers": np.ones(2)})
        (folder,) = tmp_path.iterdir()
        (whole,) = folder.glob("*.npz")
        whole.rename(whole.with_name(f".{whole.name}.new"))
        assert chunks.done() == frozenset()
        chunks.put(3, {"answers": np.zeros(2)})
        assert chunks.done() == {3}


def test_another_job_s_results_are_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with open_chunks(output, RECIPE) as chunks:
        chunks.put(0, {"answers": np.ones(2)})
    with pytest.raises(OtherJob, match="remove it"), open_chunks(output, {**RECIPE, "chunk": 5}):
        pass
    with open_chunks(output, RECIPE) as chunks:
        assert chunks.done() == {0}


def test_a_job_that_did_nothing_blocks_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with open_chunks(output, RECIPE):
        pass
    with open_chunks(output, {**RECIPE, "chunk": 5}) as chunks:
        chunks.put(0, {"answers": np.ones(2)})
    with pytest.raises(OtherJob), open_chunks(output, RECIPE):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    with (
        open_chunks(output, RECIPE),
        pytest.raises(OtherJob, match="another process"),
        open_chunks(output, RECIPE),
    ):
        pass
    with open_chunks(output, RECIPE):
        pass


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_output_is_replaced_by_the_whole_one(tmp_path: Path, is_folder: bool) -> None:
    output, workspace = tmp_path / "out", tmp_path / "workspace"
    workspace.mkdir()
    for path, text in ((output, "old"), (workspace / "whole", "new")):
        if is_folder:
            path.mkdir()
        (path / "file" if is_folder else path).write_text(text)
    publish(workspace / "whole", output)
    assert (output / "file" if is_folder else output).read_text() == "new"
    assert not (workspace / "whole").exists()


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_output_is_on_the_disk_before_it_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool
) -> None:
    output, whole = tmp_path / "out", tmp_path / "workspace" / "whole"
    whole.parent.mkdir()
    if is_folder:
        (whole / "array").mkdir(parents=True)
        (whole / "array" / "chunk").write_text("new")
    else:
        whole.write_text("new")
    parts = {path.stat().st_ino for path in (whole, *whole.rglob("*"))}
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, output.exists())))
    publish(whole, output)
    *before, last = synced
    assert {part for part, _ in before} == parts
    assert not any(in_place for _, in_place in before)
    assert last == (tmp_path.stat().st_ino, True)


def test_in_a_bucket_only_a_job_s_own_results_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_buckets.keep_in(tmp_path, monkeypatch)
    output = RemotePlace("s3://bucket/out.h5")
    other = BucketChunks(output.beside("out.h5.partial"), "another recipe")
    with open_chunks(output, RECIPE) as chunks:
        chunks.put(3, {"answers": np.ones(2)})
        other.put(4, {"answers": np.zeros(2)})
        assert chunks.done() == {3}
        chunks.remove()
        assert chunks.done() == frozenset()
    assert other.done() == {4}
    (left,) = output.beside("out.h5.partial").identify()
    assert left[0].endswith("-00000004.npz")

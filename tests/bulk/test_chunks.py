"""Results that wait for the last: whole or absent, one job's alone, one process' at a time."""

from pathlib import Path

import numpy as np
import pytest

from bulk.chunks import OtherJob, open_chunks, publish

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

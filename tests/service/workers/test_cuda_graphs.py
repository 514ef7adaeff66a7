"""Graphs for batch sizes: which one computes a batch, and (on a device) that it computes the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store import LoadedVersion, Reference, open_store
from problems import Grid
from service.workers.batch_token import Job
from service.workers.compute import Surrogates
from service.workers.cuda_graphs import GraphRunner, size_for
from service.workers.lane_server import HostRunner, filled
from service.workers.sample import batch_sizes
from service.workers.worker import COTANGENT, GRADIENT, Batch, Bucket

BUCKET = Bucket("darcy", Reference("darcy", 1), "tpfa-harmonic-v1", Grid((32, 32)), "float32")


@given(st.integers(1, 300), st.integers(1, 400))
def test_the_smallest_graph_with_room_computes_a_batch(most: int, rows: int) -> None:
    sizes = batch_sizes(most)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[0] == 1
    assert sizes[-1] == most
    size = size_for(rows, most)
    if rows > most:
        assert size is None
    else:
        assert size is not None
        # nothing smaller would do, and less than half is wasted
        assert rows <= size <= max(2 * rows - 1, 1)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 5))
def test_rows_are_put_together_run_by_run_and_the_last_one_fills_up(runs: list[int], more: int) -> None:
    rows = np.arange(sum(runs) * 6, dtype=np.float32).reshape(-1, 2, 3)
    pieces = np.split(rows, np.cumsum(runs)[:-1])
    room = np.full((len(rows) + more, 2, 3), np.nan, np.float32)
    end = 0
    for done in filled(room, pieces):
        assert done.start == end
        end = done.stop
        # so that they can be sent at once
        assert np.isfinite(room[:end]).all()
    assert end == len(room)
    assert np.array_equal(room, np.concatenate([rows, rows[-1:].repeat(more, 0)]))


def job(bucket: Bucket, fields: dict[str, NDArray[np.float32]], pad_to: int | None = None) -> Job:
    """Each row in a piece of its own."""
    rows = len(fields["source"])
    pieces = {name: np.split(values, rows) for name, values in fields.items()}
    return Job(bucket, rows, pad_to, pieces, {})


@pytest.fixture
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device("cuda")


@pytest.fixture
def darcy(store_url: str) -> LoadedVersion:
    return open_store(store_url).load("darcy", 1)


@pytest.mark.gpu
@pytest.mark.parametrize("pad_to", [None, 4])
def test_a_graph_computes_what_is_computed_without(
    darcy: LoadedVersion, permeability: NDArray[np.float32], device: torch.device, pad_to: int | None
) -> None:
    surrogates = Surrogates([darcy], device)
    runner = GraphRunner(surrogates, device, 4)
    source = np.array([1.0, 2.0, 0.5], np.float32)
    for rows in (3, 1, 2, 3):
        # other numbers each time: nothing of the last batch stays
        fields = {"permeability": rows * permeability[:rows], "source": source[:rows]}
        found = runner.run(job(BUCKET, fields, pad_to))
        expected = surrogates(Batch(BUCKET, fields))
        assert found.fields["pressure"].shape == (rows, 32, 32)
        assert np.allclose(found.fields["pressure"], expected.fields["pressure"], rtol=1e-4, atol=1e-7)
    assert None not in runner._graphs.values()
    assert runner.usable()


@pytest.mark.gpu
def test_a_row_has_the_same_bits_whatever_its_company(
    darcy: LoadedVersion, permeability: NDArray[np.float32], device: torch.device
) -> None:
    runner = GraphRunner(Surrogates([darcy], device), device, 4)
    bucket = replace(BUCKET, reproducible=True)
    one = np.ones(1, np.float32)
    answer = runner.run(job(bucket, {"permeability": permeability[:1], "source": one}, pad_to=4))
    # the next job overwrites it
    alone = answer.fields["pressure"].copy()
    fields = {"permeability": permeability[[1, 0, 2]], "source": one.repeat(3)}
    together = runner.run(job(bucket, fields, pad_to=4))
    assert np.array_equal(alone[0], together.fields["pressure"][1])


@pytest.mark.gpu
def test_gradients_and_what_is_too_large_go_without_a_graph(
    darcy: LoadedVersion, permeability: NDArray[np.float32], device: torch.device
) -> None:
    runner = GraphRunner(Surrogates([darcy], device), device, 2)
    source = np.ones(3, np.float32)
    fields = {"permeability": permeability, "source": source}
    assert runner.run(job(BUCKET, fields)).fields["pressure"].shape == (3, 32, 32)
    gradients = runner.run(job(replace(BUCKET, task="vjp"), {**fields, f"{COTANGENT}pressure": permeability}))
    assert np.isfinite(gradients.fields[f"{GRADIENT}permeability"]).all()
    assert not runner._graphs


@pytest.mark.gpu
def test_what_cannot_be_captured_is_computed_all_the_same(
    darcy: LoadedVersion,
    permeability: NDArray[np.float32],
    device: torch.device,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Synchronizing(torch.nn.Module):
        def forward(self, permeability: torch.Tensor, source: torch.Tensor, _: object) -> torch.Tensor:
            # no capture allows this
            return permeability * source.sum().item()

    surrogates = Surrogates([replace(darcy, surrogate=Synchronizing())], device)  # type: ignore[arg-type]
    runner = GraphRunner(surrogates, device, 4)
    fields = {"permeability": permeability, "source": np.ones(3, np.float32)}
    for _ in range(2):
        found = runner.run(job(BUCKET, fields)).fields["pressure"]
        assert np.allclose(found, HostRunner(surrogates).run(job(BUCKET, fields)).fields["pressure"])
    assert caplog.text.count("without a CUDA graph") == 1

"""How far each row is from the training data, from the forward pass to whoever asked."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from numpy.typing import NDArray

from model_store import Calibration, FeatureSpace, LoadedVersion, Origin, Reference, open_store
from operators.features import FeatureReader
from problems import Grid
from service.batching.batcher import Batcher, BatchRules
from service.ticket import ANYBODY
from service.versions.loading import served_version
from service.workers.batch_token import Placed, read_answer, write_answer
from service.workers.compute import Surrogates
from service.workers.worker import COTANGENT, Batch, Bucket, Solutions, ThreadWorker

CPU = torch.device("cpu")
DARCY = Bucket("darcy", Reference("darcy", 1), "tpfa-harmonic-v1", Grid((32, 32), (1.0, 1.0)), "float32")
SOURCE = np.array([1.0, 2.0, 0.5], np.float32)


def features_of(version: LoadedVersion, permeability: NDArray[np.float32]) -> NDArray[np.float32]:
    with FeatureReader(version.surrogate) as reader, torch.inference_mode():
        version.surrogate(torch.from_numpy(permeability)[:, None], torch.from_numpy(SOURCE))
        return reader.take().numpy()


@pytest.fixture(scope="module")
def version(store_url: str, permeability: NDArray[np.float32]) -> LoadedVersion:
    """A version that has seen the second field: features are counted from it."""
    bare = open_store(store_url).load("darcy", 1)
    center = features_of(bare, permeability)[1].astype(np.float64)
    origin = Origin(
        weights_sha256=bare.card.files["weights.safetensors"].sha256,
        scheme=bare.card.scheme,
        samples=19,
        horizons=(0,),
        data_sha256="0" * 64,
        recipes={},
        feature_layer="norm",
        feature_samples=2,
        code_version="0.1.0",
    )
    space = FeatureSpace(center, np.eye(len(center)), np.array([1e-3, 0.01, 1e9], np.float32))
    scores = {
        "relative_l2": np.arange(19, dtype=np.float32)[None],
        "l2_estimate": np.arange(19, dtype=np.float32)[None] / 2,
    }
    return replace(bare, calibration=Calibration(origin, scores, space))


def batch_of(permeability: NDArray[np.float32], bucket: Bucket = DARCY) -> Batch:
    return Batch(bucket, {"permeability": permeability, "source": SOURCE[: len(permeability)]})


def test_a_row_is_compared_with_the_calibration(
    version: LoadedVersion, permeability: NDArray[np.float32]
) -> None:
    found = Surrogates([version], CPU)(batch_of(permeability))
    # the field that the features are counted from is nearer than all others, the rest beyond two of three
    assert found.novelty == (0.5, 0.0, 0.5)
    # in other units, and with another source, it is the same field
    scaled = Surrogates([version], CPU)(batch_of(1024 * permeability))
    assert scaled.novelty == found.novelty


def test_the_answer_is_that_of_a_version_that_cannot_tell(
    version: LoadedVersion, permeability: NDArray[np.float32]
) -> None:
    plain = Surrogates([replace(version, calibration=None)], CPU)(batch_of(permeability))
    found = Surrogates([version], CPU)(batch_of(permeability))
    assert plain.novelty == ()
    np.testing.assert_array_equal(found.fields["pressure"], plain.fields["pressure"])


def test_a_gradient_says_nothing_of_it(version: LoadedVersion, permeability: NDArray[np.float32]) -> None:
    surrogates = Surrogates([version], CPU)
    fields = {**batch_of(permeability).fields, f"{COTANGENT}pressure": permeability}
    assert surrogates(Batch(replace(DARCY, task="vjp"), fields)).novelty == ()
    # and leaves nothing behind for the next batch
    assert surrogates(batch_of(permeability[1:2])).novelty == (0.0,)


def test_a_service_knows_the_quantiles(version: LoadedVersion) -> None:
    found = served_version(version).calibration
    # of 19: rank 18 of 90 %, rank 19 of 95 %
    assert found["relative_l2_q90.frame_0"] == 17.0
    assert (found["relative_l2_q95"], found["l2_estimate_q95"]) == (18.0, 9.0)
    assert served_version(replace(version, calibration=None)).calibration == {}


def test_it_travels_with_the_answer() -> None:
    solutions = Solutions({"y": np.zeros((3, 2))}, (0, 0, 0), novelty=(0.25, 0.5, 1.0))
    assert solutions.head(2).novelty == (0.25, 0.5)
    assert solutions.head(3).novelty == solutions.novelty
    assert Solutions({"y": np.zeros((3, 2))}, (0, 0, 0)).head(1).novelty == ()


@pytest.mark.parametrize("novelty", [(), (0.25, 1.0)])
def test_a_process_says_it_of_its_rows(novelty: tuple[float, ...]) -> None:
    outputs = {"pressure": np.empty((2, 4, 6), np.float32)}
    solutions = Solutions({"pressure": np.ones((2, 4, 6), np.float32)}, (0, 0), novelty=novelty)
    answer = orjson.loads(orjson.dumps(write_answer(solutions, outputs, 0.5)))
    assert ("novelty" in answer) is bool(novelty)
    assert read_answer(answer, Placed({}, (), outputs, 2)).novelty == novelty


def test_everybody_gets_the_scores_of_his_own_rows() -> None:
    def echo(batch: Batch) -> Solutions:
        values = batch.fields["permeability"]
        scores = tuple(float(row) for row in values[:, 0, 0])
        return Solutions({"pressure": values}, (0,) * batch.rows, novelty=scores)

    async def story() -> None:
        batcher = Batcher(ThreadWorker(echo), BatchRules(max_batch=4, queue_bytes=10**6, queue_seconds=100.0))
        try:
            parts = [np.full((rows, 32, 32), 1.0, np.float32) * number for number, rows in ((2, 1), (3, 2))]
            # six rows are two batches
            parts.append(np.arange(6, dtype=np.float32)[:, None, None] + np.zeros((6, 32, 32), np.float32))
            outcomes = await asyncio.gather(
                *(
                    batcher.submit(
                        Batch(DARCY, {"permeability": part, "source": np.ones(len(part), np.float32)}),
                        ANYBODY,
                    )
                    for part in parts
                )
            )
        finally:
            await batcher.close()
        found: list[Any] = [outcome.solutions.novelty for outcome in outcomes]
        assert found == [(2.0,), (3.0, 3.0), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]

    asyncio.run(story())

"""BentoML: one forward for all requests that its adaptive batcher puts together."""

import base64
import os

import bentoml
import numpy as np
import torch

from benchmarks.serving.models import MAX_BATCH, build


def _answer(model: str):  # type: ignore[no-untyped-def]
    """A batched endpoint for a model."""

    def infer(self, fields: list[str]) -> list[str]:  # type: ignore[no-untyped-def]
        batch = np.stack([np.frombuffer(base64.b64decode(field), np.float32) for field in fields])
        side = round(batch.shape[1] ** 0.5)
        answer = self.forwards[model](torch.from_numpy(batch).reshape(-1, side, side))
        return [base64.b64encode(row.contiguous().numpy().tobytes()).decode() for row in answer]

    infer.__name__ = model
    return bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60000, route=f"/{model}")(
        infer
    )


class Fields:
    """Every model has an endpoint; they are added below."""

    def __init__(self) -> None:
        frozen = os.environ["BENCH_FROZEN"] == "1"
        self.forwards = {name: build(name, frozen) for name in os.environ["BENCH_MODELS"].split(",")}


for _name in os.environ["BENCH_MODELS"].split(","):
    setattr(Fields, _name, _answer(_name))

Fields = bentoml.service(workers=1, traffic={"timeout": 60})(Fields)  # type: ignore[misc]

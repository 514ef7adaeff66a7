"""Ray Serve: a deployment per model, one forward for all requests of its window."""

import logging
import os
import signal
import threading

import numpy as np
import ray
import torch
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.serving.models import MAX_BATCH, build


class Field:
    """Bytes to bytes."""

    def __init__(self, model: str) -> None:
        self._forward = build(model, os.environ["BENCH_FROZEN"] == "1")

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.002)
    async def _infer(self, bodies: list[bytes]) -> list[bytes]:
        batch = np.stack([np.frombuffer(body, np.float32) for body in bodies])
        side = round(batch.shape[1] ** 0.5)
        answer = self._forward(torch.from_numpy(batch).reshape(-1, side, side)).contiguous().numpy()
        return [row.tobytes() for row in answer]

    async def __call__(self, request: Request) -> Response:
        """Answer one client."""
        return Response(await self._infer(await request.body()), media_type="application/octet-stream")


if __name__ == "__main__":
    deployment = serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level=logging.WARNING, object_store_memory=256 * 2**20
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_HTTP_PORT"])})
    for model in os.environ["BENCH_MODELS"].split(","):
        serve.run(deployment(Field).bind(model), name=model, route_prefix=f"/{model}")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()

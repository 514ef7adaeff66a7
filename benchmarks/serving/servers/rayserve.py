"""Ray Serve, with its throughput flag and HAProxy in place of its proxy in Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from benchmarks.serving import forms
from benchmarks.serving.request import Array, Request, Route
from benchmarks.serving.server import Command, Place, Server, free_port

__all__ = ["RayServe"]


@final
class RayServe(Server):
    """One replica, batches within a window of 2 ms."""

    name = "ray"
    title = "Ray Serve, throughput flag and HAProxy"
    requirements = ("ray[serve]==2.60.0", "numpy")
    # a sixth of a core
    restless = True
    batching = "serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)"
    health = "/-/healthz"

    def prepare(self, place: Place) -> Command:
        """A program that starts Ray and waits."""
        haproxy = place.folder / "haproxy"
        haproxy.mkdir(exist_ok=True)
        flags = {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return Command([place.python, "-m", "benchmarks.serving.peers.ray_app"], flags)

    def routes(self, place: Place, model: str) -> Sequence[Route]:
        """The raw bytes."""

        def encode(field: Array) -> Request:
            return Request(f"/{model}", field.tobytes(), {"content-type": "application/octet-stream"})

        return (Route("ray-raw", "Ray Serve: raw", "http", place.http_port, encode, forms.from_raw),)

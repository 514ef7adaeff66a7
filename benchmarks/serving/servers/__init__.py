"""The servers of the comparison: one file each, and a row in ``PEERS``."""

from collections.abc import Mapping

from benchmarks.serving.server import Server
from benchmarks.serving.servers.bento import BentoML
from benchmarks.serving.servers.litserve import LitServe
from benchmarks.serving.servers.mlserver import MLServer
from benchmarks.serving.servers.ours import Ours
from benchmarks.serving.servers.rayserve import RayServe
from benchmarks.serving.servers.tesseract import Tesseract
from benchmarks.serving.servers.triton import Triton

__all__ = ["OURS", "PEERS"]

OURS: Server = Ours()
PEERS: Mapping[str, Server] = {
    server.name: server for server in (Triton(), LitServe(), BentoML(), RayServe(), MLServer(), Tesseract())
}

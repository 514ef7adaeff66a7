"""A whole service in a thread of the tests' own process."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from service.processes.supervisor import Addresses
from service.serve import Service
from service.settings import Settings
from service.versions.served import ServedVersion

Known = tuple[Addresses, Sequence[ServedVersion]]


@contextmanager
def running_service(settings: Settings) -> Iterator[Known]:
    """Its addresses, on ports of its own, and what it serves, until the block ends."""
    ready: queue.Queue[Known | None] = queue.Queue()
    service = Service(settings.model_copy(update={"http_port": 0, "grpc_port": 0, "processes": "none"}))

    def run() -> None:
        try:
            service.run(lambda *known: ready.put(known))
        finally:
            ready.put(None)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        known = ready.get(timeout=600)
        assert known is not None, "the service did not start"
        yield known
    finally:
        service.stop()
        thread.join(timeout=30)
        assert not thread.is_alive()

"""What a process says that it holds."""

import mmap

from service.telemetry.metrics import Metrics
from service.workers.memory import held_memory


def test_a_process_holds_what_it_was_given() -> None:
    before = held_memory()["resident"]
    # straight from the system: an array could lie in memory that an earlier test gave back to the heap
    with mmap.mmap(-1, 2**26) as held:
        held.write(bytes([1]) * len(held))
        assert held_memory()["resident"] - before > len(held) // 2


def test_the_metrics_take_what_a_process_says() -> None:
    Metrics().worker("darcy", "3", "cpu").memory(**held_memory())

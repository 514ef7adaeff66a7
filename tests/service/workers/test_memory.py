"""What a process says that it holds."""

import numpy as np

from service.telemetry.metrics import Metrics
from service.workers.memory import held_memory


def test_a_process_holds_what_it_was_given() -> None:
    before = held_memory()["resident"]
    held = np.ones(2**23)
    assert held_memory()["resident"] - before > held.nbytes // 2


def test_the_metrics_take_what_a_process_says() -> None:
    Metrics().worker("darcy", "3", "cpu").memory(**held_memory())

"""A process that makes publishers for ``test_killed_publisher.py``: it imports torch once and forks.

Started with a folder that holds ``card.json`` and ``state.safetensors``. Each line of its input names a
function below and a store, and is answered by a line, both JSON.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from model_store import Card, Store, open_store

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock"}


def die_at_every_step(store: Store, publish: Callable[[], int]) -> int:
    """Publishers die before their first, second, ... step that changes something, until one is done."""
    for step in itertools.count():
        child = fork(lambda step=step: dying_publisher(step, store, publish))
        if os.waitpid(child, 0)[1] == 0:
            break
    return step


def dying_publisher(step: int, store: Store, publish: Callable[[], int]) -> None:
    count = itertools.count()

    def die(event: str, arguments: tuple[object, ...]) -> None:
        if changes(event, arguments) and next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    store.set_alias("darcy", "production", publish(), store.aliases("darcy").get("production"))


def changes(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an audit event is a change, or the opening of a folder that is about to be synced."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY
    return event in CHANGES or (
        event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & writing)
    )


def die_at_random_moments(_: Store, publish: Callable[[], int]) -> int:
    """Publishers work until they are killed; returns how many were."""
    begin = time.perf_counter()
    os.waitpid(fork(publish), 0)
    once = time.perf_counter() - begin
    moments = random.Random(0)
    for moment in [moments.uniform(0.0, 3.0 * once) for _ in range(20)]:
        child = fork(lambda: [publish() for _ in itertools.count()])
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return 20


def race(_: Store, publish: Callable[[], int]) -> list[int]:
    """Three publishers of five versions each; returns the numbers they were given."""
    reading, writing = os.pipe()
    children = [
        fork(lambda: os.write(writing, b"".join(b"%d\n" % publish() for _ in range(5)))) for _ in range(3)
    ]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    return [int(line) for line in os.read(reading, 65536).split()]


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child; returns the child's process id."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return child


def main() -> None:
    # one thread: a fork takes no others along
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    card, state = Card.from_json((folder / "card.json").read_bytes()), load_file(folder / "state.safetensors")
    works = {work.__name__: work for work in (die_at_every_step, die_at_random_moments, race)}
    for line in sys.stdin:
        name, url = json.loads(line)
        store = open_store(url)
        # the padding makes writing long enough to be hit
        answer = works[name](
            store, lambda store=store: store.publish("darcy", state, card, {"padding": bytes(300_000)})
        )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

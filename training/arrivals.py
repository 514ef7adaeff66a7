"""How processes that were started together agree on which start this is.

``torchrun`` may keep its store over restarts, with the addresses of processes that are no more, and nothing
that it tells a process tells this start from an earlier one: each node counts the deaths of its own processes
only. So process 0 counts the starts, and tells whoever arrives. It takes nobody of an earlier start for one
of this: those died before this one began, and nobody dead confirms what it was told.
"""

from typing import Final
from uuid import uuid4

from torch.distributed.distributed_c10d import Store

_STARTS: Final = "mno/starts"
# what process 0 reads, and the two kinds of words in it
_ARRIVALS: Final = "mno/arrivals"
_HERE: Final = "here"
_TOLD: Final = "told"


def count_start(store: Store, number: int, count: int) -> int:
    """Which start of these processes this is, from 1, as far as the store remembers; the same for all.

    Args:
        store: all processes reach it; it may hold what earlier starts left there.
        number: of this process; 0 counts.
        count: of all processes.

    Raises:
        torch.distributed.DistStoreError: some did not arrive within the store's timeout.
    """
    return _tell(store, count - 1) if number == 0 else _ask(store)


def _tell(store: Store, others: int) -> int:
    start = store.add(_STARTS, 1)
    while others:
        what, word = store.queue_pop(_ARRIVALS).decode().split()
        if what == _HERE:
            store.set(_answer(word), str(start))
        elif int(word) == start:
            others -= 1
    return start


def _ask(store: Store) -> int:
    me = uuid4().hex
    store.queue_push(_ARRIVALS, f"{_HERE} {me}")
    # waits for it
    start = int(store.get(_answer(me)))
    store.queue_push(_ARRIVALS, f"{_TOLD} {start}")
    return start


def _answer(process: str) -> str:
    return f"mno/start_of/{process}"

"""Arrays of an arena: apart from each other, aligned, and given back when nobody refers to them."""

import gc
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.errors import Overloaded
from service.workers.arena import ALIGNMENT, KEPT_BYTES, Arena

# allocate so many bytes, or (negative) let go of one of the arrays, or (None) trim
STEPS = st.lists(st.none() | st.integers(-40, 9000), max_size=80)


def resident(arena: Arena) -> int:
    """Memory that the arena's pages take [B]."""
    return 512 * os.fstat(arena.fd).st_blocks


def where(arena: Arena, array: NDArray[Any]) -> int:
    offset = arena.offset_of(array)
    assert offset is not None
    return offset


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_arrays_never_overlap_and_all_memory_comes_back(steps: list[int | None]) -> None:
    arena = Arena(2**16)
    arrays: list[NDArray[Any]] = []
    for number, step in enumerate(steps):
        if step is None:
            arena.trim()
            continue
        if step < 0:
            if arrays:
                del arrays[step % len(arrays)]
            continue
        try:
            arrays.append(arena.allocate((step,), np.uint8))
        except Overloaded:
            continue
        arrays[-1][:] = number
        spans = sorted((where(arena, array), array.nbytes) for array in arrays)
        for (offset, size), (following, _) in zip(spans, [*spans[1:], (arena.size, 0)], strict=True):
            assert offset % ALIGNMENT == 0
            assert offset + size <= following
        assert arena.used == sum(max(64, -(-array.nbytes // 64) * 64) for array in arrays)
    # nobody wrote there since, and no page was taken away
    assert all((array == array[:1]).all() for array in arrays)
    assert all(steps[array[0]] == array.size for array in arrays if array.size)
    arrays.clear()
    assert arena.used == 0
    # in one piece again
    assert arena.allocate((arena.size,), np.uint8).nbytes == arena.size
    arena.close()


def test_what_does_not_fit_is_refused_with_a_way_out() -> None:
    arena = Arena(2**16)
    kept = arena.allocate((2**15,), np.uint8)
    with pytest.raises(Overloaded, match=r"expected 32832 bytes .* found 32768 .*try again") as refused:
        arena.allocate((2**15 + 1,), np.uint8)
    assert refused.value.retry_after == 1
    assert arena.used == kept.nbytes


def test_a_view_keeps_the_block_and_its_end_frees_it() -> None:
    arena = Arena(2**16)
    array = arena.allocate((4, 8, 8), np.float32)
    part = array[1:, ::2].reshape(3, -1)
    view = array[2:]
    del array
    assert arena.used == 1024
    del view
    # a copy: the pieces of the view above lay apart
    assert arena.used == 0
    del part


def test_an_array_in_a_cycle_that_is_collected_while_allocating_goes_back() -> None:
    arena = Arena(2**20)
    gc.collect()
    for _ in range(50):
        cycle: list[object] = [arena.allocate((100,), np.uint8)]
        cycle.append(cycle)
    del cycle
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        kept = [arena.allocate((100,), np.uint8) for _ in range(50)]
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert arena.used == 128 * len(kept)


def test_threads_share_it() -> None:
    arena = Arena(2**20)
    failures: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            array = arena.allocate((50,), np.int64)
            array[:] = number
            if (array != number).any():
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert arena.used == 0


def test_offsets_are_known_of_contiguous_arrays_inside_only() -> None:
    arena = Arena(2**16)
    array = arena.allocate((4, 8), np.float32)
    assert arena.offset_of(array) == 0
    assert arena.offset_of(array[1:]) == 32
    assert arena.offset_of(array[:, 1:]) is None
    assert arena.offset_of(array.T) is None
    assert arena.offset_of(np.zeros(4)) is None
    with mmap.mmap(arena.fd, 0) as elsewhere:
        array[1, 0] = 7
        assert np.frombuffer(elsewhere, np.float32, 1, 32).tolist() == [7.0]


def test_pages_of_a_burst_go_back_to_the_system() -> None:
    arena = Arena(2**26)
    small = arena.allocate((2**20,), np.uint8)
    small[:] = 1
    for _ in range(3):
        large = arena.allocate((2**24,), np.uint8)
        large[:] = 1
        del large
        # what was used since the last time may be used again
        arena.trim()
        assert resident(arena) >= 2**24
    arena.trim()
    assert resident(arena) == small.nbytes
    assert (small == 1).all()
    # pages that went come back empty
    assert not arena.allocate((2**24,), np.uint8).any()


def test_pages_beside_arrays_in_use_stay() -> None:
    arena = Arena(2**24)
    arrays = [arena.allocate((1000,), np.uint8) for _ in range(100)]
    for number, array in enumerate(arrays):
        array[:] = number
    del arrays[50:], array
    arena.trim()
    arena.trim()
    for number, array in enumerate(arrays):
        assert (array == number).all()
    assert resident(arena) <= 50 * 1024 + mmap.PAGESIZE


def test_when_nothing_is_in_use_little_stays_without_being_asked() -> None:
    arena = Arena(2 * KEPT_BYTES)
    most = arena.allocate((KEPT_BYTES,), np.uint8)
    most[:] = 1
    del most
    assert resident(arena) == KEPT_BYTES
    more = arena.allocate((KEPT_BYTES + 1,), np.uint8)
    more[:] = 1
    del more
    assert resident(arena) == 0


def mapped() -> int:
    """Arenas in the memory of this process; other tests may have left some to FastAPI's caches."""
    return Path("/proc/self/maps").read_text("ascii").count("mno-arena")


def test_no_memory_outlives_the_arena_and_its_arrays() -> None:
    gc.collect()
    others = mapped()
    arena = Arena(2**20)
    assert mapped() == others + 1
    array = arena.allocate((1000,), np.uint8)
    arena.close()
    array[:] = 3
    assert (array == 3).all()
    del arena, array
    gc.collect()
    assert mapped() == others

"""Frames that wait to be taken: at first where they were computed, later in memory of their own."""

import asyncio
from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from service.frame_judge import Block, Frame
from service.rollout import Sheet
from service.shelf import Form, Shelf

COUNT = 6


def form() -> Form[Sheet]:
    return Form(lambda frame: Sheet(frame.step, (b"head", frame.fields["h"].data.cast("B"))), Sheet.own)


def block(memory: NDArray[np.float32]) -> Block:
    """Frames whose numbers lie in ``memory`` [frame y x]."""
    frames = [Frame(step, 0.0, {"h": values[None]}, {}, None) for step, values in enumerate(memory)]
    return Block(frames, {}, None)


def memory() -> NDArray[np.float32]:
    return np.arange(COUNT * 4, dtype=np.float32).reshape(COUNT, 2, 2)


def bytes_of(sheets: Sequence[Sheet]) -> list[tuple[int, bytes]]:
    return [(step, b"".join(parts)) for step, parts in sheets]


async def settle() -> None:
    """Let everybody do what can be done."""
    for _ in range(20):
        await asyncio.sleep(0)


def expected() -> list[tuple[int, bytes]]:
    return [(step, b"head" + values.tobytes()) for step, values in enumerate(memory())]


def test_a_quick_reader_takes_them_in_their_order() -> None:
    async def story() -> None:
        with closing(Shelf(block(memory()), form(), ends=True)) as shelf:
            shelf.wait()
            taken = []
            for left in range(COUNT, 0, -1):
                assert not shelf.empty
                assert shelf.half_empty is (left <= COUNT // 2)
                taken.append(await shelf.take())
            assert shelf.empty
        assert bytes_of(taken) == expected()

    asyncio.run(story())


def test_what_a_slow_reader_leaves_does_not_stay_where_it_was_computed() -> None:
    async def story() -> None:
        where = memory()
        with closing(Shelf(block(where), form(), ends=True)) as shelf:
            shelf.wait(0.0)
            taken = [await shelf.take()]
            await settle()
            # whoever waited for the memory has it now
            where[...] = np.nan
            taken += [await shelf.take() for _ in range(COUNT - 1)]
        assert bytes_of(taken) == expected()

    asyncio.run(story())


def test_frames_that_are_taken_while_the_others_are_copied_are_whole() -> None:
    async def story() -> None:
        with closing(Shelf(block(memory()), form(), ends=True)) as shelf:
            shelf.wait(0.0)
            taken = []
            while not shelf.empty:
                taken.append(await shelf.take())
                await asyncio.sleep(0)
        assert bytes_of(taken) == expected()

    asyncio.run(story())


def test_nothing_is_copied_for_a_reader_that_left() -> None:
    async def story() -> None:
        copies = []
        drafts = Form(lambda frame: frame.step, copies.append)
        with closing(Shelf(block(memory()), drafts, ends=True)) as shelf:
            shelf.wait(0.0)
        await settle()
        assert copies == []

    asyncio.run(story())


def test_each_is_copied_once_however_long_it_waited() -> None:
    copied: list[int] = []

    def own(sheet: Sheet) -> Sheet:
        copied.append(sheet.step)
        return sheet.own()

    async def story() -> None:
        counted = Form(form().draft, own)
        with closing(Shelf(block(memory()), counted, ends=True)) as shelf:
            shelf.wait(0.0)
            # some, not all, were moved by now
            while len(copied) < COUNT // 2:
                await asyncio.sleep(0)
            taken = [await shelf.take() for _ in range(COUNT)]
        assert bytes_of(taken) == expected()

    asyncio.run(story())
    assert sorted(copied) == list(range(COUNT))

"""The queue: who is computed together, who gets which rows, and what a caller who leaves takes along."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from problems import Grid
from service.batcher import Batcher, Outcome
from service.errors import Overloaded, WorkFailed
from service.worker import Batch, Bucket, Solutions, ThreadWorker, Worker

TICKS = 20  # more turns of the event loop than a submission needs


def batch_of(*values: float, side: int = 4) -> Batch:
    """One row for each value, which fills its field and is its source."""
    numbers = np.array(values, dtype=np.float32)
    fields = {
        "permeability": np.broadcast_to(numbers[:, None, None], (len(values), side, side)),
        "source": numbers,
    }
    return Batch(Bucket("darcy", None, "tpfa-harmonic-v1", Grid((side, side)), "float32"), fields)


def values_of(outcome: Outcome) -> list[float]:
    return [float(row[0, 0]) for row in outcome.solutions.fields["pressure"]]


def sizes(worker: Any) -> list[int]:
    return [batch.rows for batch in worker.batches]


async def settle() -> None:
    for _ in range(TICKS):
        await asyncio.sleep(0)


def with_batcher(
    worker: Worker,
    story: Callable[[Batcher], Coroutine[Any, Any, None]],
    *,
    max_batch: int = 4,
    queue_bytes: int = 10**6,
    queue_seconds: float = 100.0,
) -> None:
    async def run() -> None:
        batcher = Batcher(worker, max_batch=max_batch, queue_bytes=queue_bytes, queue_seconds=queue_seconds)
        batcher.start()
        try:
            async with asyncio.timeout(20):
                await story(batcher)
        finally:
            await batcher.close()

    asyncio.run(run())


def submit(batcher: Batcher, *values: float, side: int = 4) -> "asyncio.Task[Outcome]":
    return asyncio.get_running_loop().create_task(batcher.submit(batch_of(*values, side=side)))


def test_what_queued_up_while_the_worker_was_busy_goes_next_in_order(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, 0.0)]
        await worker.busy.wait()
        tasks += [submit(batcher, float(value)) for value in range(1, 7)]
        await settle()
        assert batcher.waiting == 6
        worker.gate.set()
        outcomes = await asyncio.gather(*tasks)
        assert [values_of(outcome) for outcome in outcomes] == [[2.0 * value] for value in range(7)]
        assert sizes(worker) == [1, 4, 2]
        assert outcomes[1].batch_size == 4

    with_batcher(worker, story)


def test_a_lone_request_waits_for_no_company(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        task = submit(batcher, 1.0)
        await settle()  # turns of the event loop only: no timer has fired
        assert sizes(worker) == [1]
        worker.gate.set()
        await task

    with_batcher(worker, story)


def test_grids_do_not_mix(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, float(value), side=4 + 4 * (value % 2)) for value in range(6)]
        worker.gate.set()
        outcomes = await asyncio.gather(*tasks)
        assert [values_of(outcome) for outcome in outcomes] == [[2.0 * value] for value in range(6)]
        assert sizes(worker) == [3, 3]

    with_batcher(worker, story)


def test_a_submission_larger_than_a_batch_comes_back_whole(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        outcome = await submit(batcher, *range(10))
        assert values_of(outcome) == [2.0 * value for value in range(10)]
        assert len(outcome.solutions.iterations) == 10
        assert sizes(worker) == [4, 4, 2]

    with_batcher(worker, story)


def test_who_leaves_the_queue_is_not_computed(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        first = submit(batcher, 0.0)
        await worker.busy.wait()
        tasks = [submit(batcher, float(value)) for value in (1, 2, 3)]
        await settle()
        tasks[1].cancel()
        await settle()
        assert batcher.waiting == 2
        worker.gate.set()
        assert values_of(await first) == [0.0]
        assert (values_of(await tasks[0]), values_of(await tasks[2])) == ([2.0], [6.0])
        assert sizes(worker) == [1, 2]

    with_batcher(worker, story)


def test_who_leaves_a_running_batch_takes_nobody_along(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, float(value)) for value in range(3)]
        await worker.busy.wait()
        tasks[1].cancel()
        worker.gate.set()
        assert (values_of(await tasks[0]), values_of(await tasks[2])) == ([0.0], [4.0])
        assert values_of(await submit(batcher, 5.0)) == [10.0]

    with_batcher(worker, story)


@pytest.mark.parametrize("turns", range(TICKS))
def test_leaving_at_any_moment_leaves_the_queue_working(turns: int, gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        leaving, staying = submit(batcher, *range(6)), submit(batcher, 7.0)
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
        assert values_of(await staying) == [14.0]
        assert values_of(await submit(batcher, 8.0)) == [16.0]
        assert batcher.waiting == 0

    with_batcher(worker, story)


def test_a_batch_that_breaks_fails_alone(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        poisoned = [submit(batcher, worker.POISON), submit(batcher, 1.0)]
        failures = await asyncio.gather(*poisoned, return_exceptions=True)
        assert [type(failure) for failure in failures] == [WorkFailed, WorkFailed]
        assert failures[0] is not failures[1]
        assert values_of(await submit(batcher, 2.0)) == [4.0]

    with_batcher(worker, story)


def test_a_part_that_breaks_fails_its_submission(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        with pytest.raises(WorkFailed):
            await submit(batcher, 0, 1, 2, 3, worker.POISON, 5, 6, 7, 8)
        assert values_of(await submit(batcher, 2.0)) == [4.0]
        assert batcher.waiting == 0

    with_batcher(worker, story)


def test_a_worker_that_loses_rows_is_not_believed() -> None:
    def lose(batch: Batch) -> Solutions:
        return Solutions({"pressure": batch.fields["permeability"][:1]}, (0,))

    async def story(batcher: Batcher) -> None:
        with pytest.raises(WorkFailed):
            await submit(batcher, 1.0, 2.0)
        assert values_of(await submit(batcher, 3.0)) == [3.0]

    with_batcher(ThreadWorker(lose), story)


def test_a_full_queue_refuses_at_once_and_takes_again_later(gated_worker: Any) -> None:
    worker = gated_worker()
    row = batch_of(0.0).nbytes

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, 0.0), submit(batcher, 1.0)]
        await worker.busy.wait()
        with pytest.raises(Overloaded) as refusal:
            await batcher.submit(batch_of(2.0))
        assert refusal.value.retry_after >= 1
        going_on = asyncio.create_task(batcher.submit(batch_of(2.0), admitted=True))
        worker.gate.set()
        assert values_of(await going_on) == [4.0]
        await asyncio.gather(*tasks)
        assert values_of(await submit(batcher, 3.0)) == [6.0]

    with_batcher(worker, story, queue_bytes=2 * row)


def test_a_queue_that_would_take_too_long_refuses(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        await submit(batcher, 0.0)  # now it knows what a row takes: more than nothing
        worker.gate.clear()
        task = submit(batcher, 1.0)
        await settle()
        with pytest.raises(Overloaded):
            await batcher.submit(batch_of(2.0))
        worker.gate.set()
        await task

    with_batcher(worker, story, queue_seconds=1e-12)


def test_closing_ends_who_still_waits_and_closes_the_worker(gated_worker: Any) -> None:
    worker = gated_worker()
    waiting: list[asyncio.Task[Outcome]] = []

    async def story(batcher: Batcher) -> None:
        waiting.append(submit(batcher, 1.0))
        await worker.busy.wait()
        waiting.append(submit(batcher, 2.0))
        await settle()
        await batcher.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    with_batcher(worker, story)
    assert worker.closed


def test_a_row_without_a_solution_is_its_caller_s_alone() -> None:
    def solve(batch: Batch) -> Solutions:
        negative = np.flatnonzero(batch.fields["source"] < 0)
        unsolved = {int(row): f"row of {batch.fields['source'][row]}" for row in negative}
        return Solutions({"pressure": batch.fields["permeability"]}, (0,) * batch.rows, unsolved)

    async def story(batcher: Batcher) -> None:
        outcomes = await asyncio.gather(
            submit(batcher, 1.0), submit(batcher, 2.0, -3.0), submit(batcher, *range(5), -6.0, 7.0)
        )
        unsolved = [outcome.solutions.unsolved for outcome in outcomes]
        assert unsolved == [{}, {1: "row of -3.0"}, {5: "row of -6.0"}]

    with_batcher(ThreadWorker(solve), story)

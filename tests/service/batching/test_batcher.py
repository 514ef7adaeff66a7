"""The queue: who is computed together, who gets which rows, and what a caller who leaves takes along."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_worker import LoopWorker

from problems import Grid
from service import errors
from service.batching.batcher import Batcher, BatchRules, Outcome
from service.errors import DeadlineExceeded, Overloaded, WorkFailed
from service.ticket import ANYBODY, Ticket
from service.workers.worker import Batch, Bucket, Solutions, ThreadWorker, Worker, WorkerLost, joined

TICKS = 20  # more turns of the event loop than a submission needs


def batch_of(*values: float, side: int = 4, reproducible: bool = False) -> Batch:
    """One row for each value, which fills its field and is its source."""
    numbers = np.array(values, dtype=np.float32)
    fields = {
        "permeability": np.broadcast_to(numbers[:, None, None], (len(values), side, side)),
        "source": numbers,
    }
    grid = Grid((side, side))
    bucket = Bucket("darcy", None, "tpfa-harmonic-v1", grid, "float32", reproducible=reproducible)
    return Batch(bucket, fields)


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
    observer: Any = None,
    clock: Callable[[], float] = time.perf_counter,
    **rules: Any,
) -> None:
    async def run() -> None:
        chosen = BatchRules(**{"max_batch": 4, "queue_bytes": 10**6, "queue_seconds": 100.0, **rules})
        batcher = Batcher(worker, chosen, observer, clock=clock)
        try:
            async with asyncio.timeout(20):
                await story(batcher)
        finally:
            await batcher.close()

    asyncio.run(run())


def submit(
    batcher: Batcher,
    *values: float,
    side: int = 4,
    ticket: Ticket = ANYBODY,
    reproducible: bool = False,
) -> "asyncio.Task[Outcome]":
    batch = batch_of(*values, side=side, reproducible=reproducible)
    return asyncio.get_running_loop().create_task(batcher.submit(batch, ticket))


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


def test_what_was_measured_elsewhere_refuses_who_would_wait_in_vain(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        hasty = Ticket(deadline=time.perf_counter() + 30)
        batcher.learn(batch_of(0.0).bucket, 1, 40.0)
        first = submit(batcher, 1.0)
        await worker.busy.wait()
        with pytest.raises(Overloaded, match="to the deadline"):
            await batcher.submit(batch_of(2.0), hasty)
        worker.gate.set()
        await first

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


def test_a_poisonous_neighbor_fails_alone(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        tasks = [submit(batcher, value) for value in (1.0, worker.POISON, 2.0)]
        first, failure, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failure, WorkFailed)
        assert not isinstance(first, BaseException)
        assert not isinstance(last, BaseException)
        assert (values_of(first), values_of(last)) == ([2.0], [4.0])
        # together, and then each alone
        assert sizes(worker) == [3, 1, 1, 1]

    with_batcher(worker, story)


def test_who_breaks_alone_is_not_computed_again(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        failures = await asyncio.gather(
            *(submit(batcher, worker.POISON, side=side) for side in (4, 8)), return_exceptions=True
        )
        assert [type(failure) for failure in failures] == [WorkFailed, WorkFailed]
        assert sizes(worker) == [1, 1]
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


def test_closing_tells_who_still_waits_to_come_again_and_closes_the_worker(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        waiting = [submit(batcher, 1.0)]
        await worker.busy.wait()
        waiting.append(submit(batcher, 2.0))
        await settle()
        await batcher.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [errors.WorkerLost, errors.WorkerLost]
        with pytest.raises(errors.WorkerLost):
            await submit(batcher, 3.0)

    with_batcher(worker, story)
    assert worker.closed


@pytest.mark.parametrize("turns", range(TICKS))
def test_closing_at_any_moment_leaves_nobody_waiting(turns: int, gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        tasks = [submit(batcher, *range(6)), submit(batcher, 1.0, side=8), submit(batcher, 2.0)]
        for _ in range(turns):
            await asyncio.sleep(0)
        await batcher.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, Outcome | errors.WorkerLost)

    with_batcher(worker, story)


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


# --- who goes first


def of(client: str = "", priority: Literal["interactive", "bulk"] = "interactive") -> Ticket:
    return Ticket(client=client, priority=priority)


class Seen:
    """What a queue told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.told.append((name, *args))

    def count(self, name: str, reason: str) -> int:
        return sum(1 for told in self.told if told[0] == name and told[-1] == reason)


def order_of(worker: Any) -> list[float]:
    """The rows in the order in which they were computed, but for the first, which made the others wait."""
    return [float(value) for batch in worker.batches[1:] for value in batch.fields["source"]]


def served_in_order(worker: Any, submissions: Sequence[tuple[float, Ticket]], **rules: Any) -> list[float]:
    """Submits while the worker is busy, and tells in which order it computed."""

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, -1.0)]
        await worker.busy.wait()
        for value, ticket in submissions:
            tasks.append(submit(batcher, value, ticket=ticket))
            await settle()
        worker.gate.set()
        await asyncio.gather(*tasks)

    with_batcher(worker, story, **rules)
    return order_of(worker)


def test_interactive_requests_go_before_bulk_ones(gated_worker: Any) -> None:
    submissions = [(float(n), of(priority="bulk")) for n in range(4)] + [(9.0, of())]
    assert served_in_order(gated_worker(), submissions, max_batch=2)[0] == 9.0


def test_bulk_work_that_has_lost_its_patience_is_next(gated_worker: Any) -> None:
    submissions = [(0.0, of(priority="bulk"))] + [(float(n), of()) for n in range(1, 4)]
    assert served_in_order(gated_worker(), submissions, max_batch=1, patience=0.0) == [0.0, 1.0, 2.0, 3.0]
    assert served_in_order(gated_worker(), submissions, max_batch=1, patience=99.0) == [1.0, 2.0, 3.0, 0.0]


def test_clients_take_turns_whatever_one_of_them_asks_for(gated_worker: Any) -> None:
    flood = [(float(n), of("greedy")) for n in range(8)]
    submissions = [*flood, (10.0, of("modest")), (20.0, of("other")), (11.0, of("modest"))]
    order = served_in_order(gated_worker(), submissions, max_batch=1)
    assert order.index(10.0) <= 2
    assert order.index(20.0) <= 3
    assert order.index(11.0) <= 5
    assert [value for value in order if value < 10] == [float(n) for n in range(8)]


def test_the_turns_hold_across_grids(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, -1.0)]
        await worker.busy.wait()
        tasks += [submit(batcher, float(n), ticket=of("greedy")) for n in range(12)]
        await settle()
        tasks.append(submit(batcher, 50.0, side=8, ticket=of("modest")))
        await settle()
        worker.gate.set()
        await asyncio.gather(*tasks)

    with_batcher(worker, story, max_batch=2)
    assert order_of(worker).index(50.0) <= 2


def test_bulk_work_rides_along_where_rows_are_cheap(gated_worker: Any) -> None:
    worker = gated_worker()
    now = itertools.count()

    async def story(batcher: Batcher) -> None:
        worker.gate.set()
        # every batch takes as long as any other: a row costs nothing
        for count in (1, 4, 1, 4, 1, 4, 1, 4):
            await submit(batcher, *range(count))
        worker.gate.clear()
        worker.busy.clear()
        worker.batches.clear()
        tasks = [submit(batcher, -1.0)]
        await worker.busy.wait()
        tasks += [submit(batcher, float(n), ticket=of(priority="bulk")) for n in range(3)]
        tasks += [submit(batcher, 9.0)]
        await settle()
        worker.gate.set()
        await asyncio.gather(*tasks)

    with_batcher(worker, story, clock=lambda: float(next(now)), patience=math.inf)
    assert order_of(worker) == [9.0, 0.0, 1.0, 2.0]
    assert sizes(worker) == [1, 4]


# --- deadlines and room


def test_a_deadline_that_passed_is_refused_and_one_that_passes_in_the_queue_is_not_computed(
    gated_worker: Any,
) -> None:
    worker, now, seen = gated_worker(), [0.0], Seen()

    async def story(batcher: Batcher) -> None:
        with pytest.raises(DeadlineExceeded):
            await submit(batcher, 1.0, ticket=Ticket(deadline=0.0))
        first = submit(batcher, 0.0)
        await worker.busy.wait()
        late, in_time = (submit(batcher, n, ticket=Ticket(deadline=n)) for n in (1.0, 3.0))
        await settle()
        now[0] = 2.0
        worker.gate.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert (values_of(await first), values_of(await in_time)) == ([0.0], [6.0])

    with_batcher(worker, story, clock=lambda: now[0], observer=seen)
    assert sizes(worker) == [1, 1]
    assert (seen.count("on_refused", "deadline"), seen.count("on_evicted", "deadline")) == (1, 1)


def test_a_deadline_that_the_queue_cannot_meet_is_refused_at_once(gated_worker: Any) -> None:
    worker, now, seen = gated_worker(), [0.0], Seen()

    async def story(batcher: Batcher) -> None:
        running = submit(batcher, 0.0)
        await worker.busy.wait()
        now[0] = 4.0  # so it is known that a batch takes 4 s
        worker.gate.set()
        await running
        worker.gate.clear()
        worker.busy.clear()
        running = submit(batcher, 0.0)
        await worker.busy.wait()
        with pytest.raises(Overloaded, match="to the deadline") as refusal:
            await submit(batcher, 1.0, ticket=Ticket(deadline=now[0] + 5.0))
        assert refusal.value.retry_after == 4
        patient = submit(batcher, 1.0, ticket=Ticket(deadline=now[0] + 50.0))
        worker.gate.set()
        await asyncio.gather(running, patient)

    with_batcher(worker, story, clock=lambda: now[0], observer=seen)
    assert seen.count("on_refused", "wait") == 1


def test_rows_are_counted_beside_bytes(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        first = submit(batcher, 0.0, 1.0)
        await worker.busy.wait()
        with pytest.raises(Overloaded):
            await submit(batcher, 2.0)
        worker.gate.set()
        await first

    with_batcher(worker, story, queue_rows=2)


def test_a_flood_of_one_client_leaves_room_for_others(gated_worker: Any) -> None:
    worker, seen = gated_worker(), Seen()
    row = batch_of(0.0).nbytes

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, 0.0)]
        await worker.busy.wait()
        flood = [submit(batcher, float(n), ticket=of("greedy")) for n in range(9)]
        await settle()
        refused = [task for task in flood if task.done()]
        assert refused
        with pytest.raises(Overloaded, match="are yours"):
            await refused[0]
        tasks += [submit(batcher, 1.0, ticket=of("modest")), *(set(flood) - set(refused))]
        worker.gate.set()
        await asyncio.gather(*tasks, *refused, return_exceptions=True)
        assert values_of(await tasks[1]) == [2.0]

    with_batcher(worker, story, queue_bytes=10 * row, observer=seen)
    assert seen.count("on_refused", "share") >= 1


def test_what_others_asked_for_does_not_count_against_a_client_s_wait(gated_worker: Any) -> None:
    worker, now = gated_worker(), [0.0]

    async def story(batcher: Batcher) -> None:
        running = submit(batcher, 0.0)
        await worker.busy.wait()
        now[0] = 4.0
        worker.gate.set()
        await running
        worker.gate.clear()
        worker.busy.clear()
        tasks = [submit(batcher, 0.0)]
        await worker.busy.wait()
        tasks += [submit(batcher, float(n), ticket=of("greedy")) for n in range(5)]
        await settle()
        # 4 s for what runs, 20 s for what waits, of which the modest client waits for a turn only
        with pytest.raises(Overloaded):
            await submit(batcher, 1.0, ticket=Ticket("greedy", deadline=now[0] + 20.0))
        tasks.append(submit(batcher, 1.0, ticket=Ticket("modest", deadline=now[0] + 20.0)))
        await settle()
        worker.gate.set()
        await asyncio.gather(*tasks)

    with_batcher(worker, story, clock=lambda: now[0], max_batch=1)


# --- workers that die


class MortalWorker(LoopWorker):
    """Doubles the permeability; dies of ``FATAL`` among the sources, and of whatever is computed with it."""

    FATAL = -13.0

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        self.batches.append(batch)
        await asyncio.sleep(0)
        if self.FATAL in batch.fields["source"]:
            raise WorkerLost("it died")
        return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)


def test_who_was_computed_when_a_worker_died_is_computed_again_alone() -> None:
    worker, seen = MortalWorker(), Seen()

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, value) for value in (1.0, worker.FATAL, 3.0)]
        first, failure, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failure, errors.WorkerLost)
        assert failure.retry_after >= 1
        assert isinstance(first, Outcome)
        assert isinstance(last, Outcome)
        assert (values_of(first), values_of(last)) == ([2.0], [6.0])

    with_batcher(worker, story, observer=seen)
    assert sizes(worker) == [3, 1, 1, 1]
    assert [told for told in seen.told if told[0] == "on_retry"] == [("on_retry", 1)] * 3


def test_what_waits_is_told_in_rows_and_bytes_and_an_idle_queue_holds_none(gated_worker: Any) -> None:
    worker, seen = gated_worker(), Seen()

    def told() -> list[tuple[int, int]]:
        return [(rows, nbytes) for name, rows, nbytes in (t for t in seen.told if t[0] == "on_queue")]

    async def story(batcher: Batcher) -> None:
        size = batch_of(1.0).nbytes
        first = submit(batcher, 0.0)
        await worker.busy.wait()
        # it is computed, and waits no more
        assert told()[-1] == (0, 0)
        stays, leaves, bulk = (
            submit(batcher, n, ticket=ticket)
            for n, ticket in ((1.0, ANYBODY), (2.0, ANYBODY), (3.0, Ticket(priority="bulk")))
        )
        await settle()
        assert told()[-1] == (3, 3 * size)
        leaves.cancel()
        await settle()
        assert told()[-1] == (2, 2 * size)
        worker.gate.set()
        await asyncio.gather(first, stays, bulk)
        assert told()[-1] == (0, 0)

    with_batcher(worker, story, observer=seen)


def test_a_lone_request_gets_a_second_worker_too() -> None:
    worker = MortalWorker()

    async def story(batcher: Batcher) -> None:
        with pytest.raises(errors.WorkerLost):
            await submit(batcher, worker.FATAL)
        assert values_of(await submit(batcher, 1.0)) == [2.0]

    with_batcher(worker, story)
    assert sizes(worker) == [1, 1, 1]


class UnluckyWorker(LoopWorker):
    """Breaks over ``POISON`` among the sources without dying, and dies over the first that comes after it."""

    POISON = -7.0

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.deaths = 0

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        self.batches.append(batch)
        await asyncio.sleep(0)
        if self.POISON in batch.fields["source"]:
            raise RuntimeError("poison")
        if not self.deaths:
            self.deaths += 1
            raise WorkerLost("it died")
        return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)


def test_a_death_after_a_neighbor_s_poison_costs_nobody_its_answer() -> None:
    worker = UnluckyWorker()

    async def story(batcher: Batcher) -> None:
        tasks = [submit(batcher, value) for value in (1.0, worker.POISON)]
        answer, failure = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(failure, WorkFailed)
        assert isinstance(answer, Outcome)
        assert values_of(answer) == [2.0]

    with_batcher(worker, story)
    assert sorted(sizes(worker)) == [1, 1, 1, 2]


# --- batches of fixed sizes


class PaddingWorker(LoopWorker):
    """Doubles the permeability, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int | None]] = []

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        batch = joined(parts)
        self.asked.append((batch.rows, pad_to))
        return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)


def test_batches_are_filled_up_to_the_next_size_where_that_is_wanted() -> None:
    worker = PaddingWorker()

    async def story(batcher: Batcher) -> None:
        for count in (1, 3, 4, 5, 11):
            outcome = await submit(batcher, *range(count))
            assert values_of(outcome) == [2.0 * value for value in range(count)]
            assert outcome.batch_size == min(count, 8)

    with_batcher(worker, story, max_batch=8, sizes=(1, 2, 4, 8))
    assert worker.asked == [(1, 1), (3, 4), (4, 4), (5, 8), (8, 8), (3, 4)]


def test_reproducible_batches_have_one_size() -> None:
    worker = PaddingWorker()

    async def story(batcher: Batcher) -> None:
        for count in (1, 3, 4, 9):
            outcome = await submit(batcher, *range(count), reproducible=True)
            assert values_of(outcome) == [2.0 * value for value in range(count)]

    with_batcher(worker, story, max_batch=8, reproducible_rows=4)
    assert worker.asked == [(1, 4), (3, 4), (4, 4), (4, 4), (4, 4), (1, 4)]


# --- draining


def test_the_cost_of_what_is_asked_for_often_is_not_forgotten() -> None:
    def compute(batch: Batch) -> Solutions:
        time.sleep(1e-4)
        return Solutions({}, (0,) * batch.rows)

    async def run() -> None:
        queue = Batcher(ThreadWorker(compute))
        often = batch_of(1.0)
        rare = [batch_of(1.0, side=side) for side in range(5, 305)]
        for number, each in enumerate(rare):
            await queue.submit(each)
            if number % 100 == 0:
                await queue.submit(often)
        assert queue.expected(often.bucket, 1) > 0
        assert queue.expected(rare[0].bucket, 1) == 0
        await queue.close()

    asyncio.run(run())


def test_draining_waits_for_what_was_submitted(gated_worker: Any) -> None:
    worker = gated_worker()

    async def story(batcher: Batcher) -> None:
        await batcher.drain()  # nothing is there
        tasks = [submit(batcher, float(n)) for n in range(6)]
        await worker.busy.wait()
        draining = asyncio.create_task(batcher.drain())
        await settle()
        assert not draining.done()
        worker.gate.set()
        await draining
        assert batcher.waiting == 0
        assert [values_of(await task) for task in tasks] == [[2.0 * n] for n in range(6)]

    with_batcher(worker, story)


# --- anything may happen


class WhimsicalWorker(LoopWorker):
    """Does to each batch what the plan says: answers, breaks or dies, after some turns of the event loop."""

    def __init__(self, plan: Sequence[tuple[int, str]]) -> None:
        self.plan = itertools.cycle(plan)
        self.running = 0

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        turns, fate = next(self.plan)
        self.running += 1
        assert self.running == 1, "two batches at a time"
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        if fate == "dies":
            raise WorkerLost("it died")
        if fate == "breaks":
            raise ArithmeticError("it broke")
        batch = joined(parts)
        return Solutions({"pressure": 2 * batch.fields["permeability"]}, (0,) * batch.rows)


submissions = st.tuples(
    st.integers(1, 9),  # rows
    st.sampled_from([4, 8]),  # side
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["interactive", "bulk"]),
    st.integers(0, 6),  # turns before it is submitted
    st.one_of(st.none(), st.integers(0, 12)),  # turns before its caller leaves
)
fates = st.tuples(st.integers(0, 4), st.sampled_from(["answers", "answers", "answers", "breaks", "dies"]))


@settings(max_examples=200, deadline=None)
@given(st.lists(submissions, min_size=1, max_size=12), st.lists(fates, min_size=1, max_size=8))
def test_everybody_who_stays_gets_one_answer_or_one_error(
    callers: list[tuple[int, int, str, Any, int, int | None]], plan: list[tuple[int, str]]
) -> None:
    async def call(batcher: Batcher, number: int, caller: Any) -> object:
        rows, side, client, priority, turns, _ = caller
        for _ in range(turns):
            await asyncio.sleep(0)
        values = [100.0 * number + row for row in range(rows)]
        outcome = await batcher.submit(batch_of(*values, side=side), Ticket(client, priority))
        return values_of(outcome) == [2.0 * value for value in values]

    async def leave(task: "asyncio.Task[object]", turns: int | None) -> None:
        if turns is not None:
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()

    async def story(batcher: Batcher) -> None:
        tasks = [asyncio.create_task(call(batcher, *entry)) for entry in enumerate(callers)]
        await asyncio.gather(*(leave(task, caller[-1]) for task, caller in zip(tasks, callers, strict=True)))
        for result, caller in zip(await asyncio.gather(*tasks, return_exceptions=True), callers, strict=True):
            if isinstance(result, asyncio.CancelledError):
                assert caller[-1] is not None, "cancelled by nobody"
            else:
                assert result is True or isinstance(result, WorkFailed | errors.WorkerLost)
        await batcher.drain()
        assert batcher.waiting == 0

    with_batcher(WhimsicalWorker(plan), story)

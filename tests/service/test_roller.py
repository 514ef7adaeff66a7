"""Rollouts without a protocol: versions that are replaced under them, shadows, and how many share a batch."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from loop_worker import LoopWorker

from service import errors
from service.batching.batcher import Batcher, BatchRules
from service.errors import DeadlineExceeded
from service.rollout import Frame, Rollout, RolloutRequest
from service.settings import Limits
from service.solver import Queues, Solver
from service.ticket import Ticket
from service.versions.models import Models
from service.versions.routing import Route
from service.versions.served import ServedVersion
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import Batch, Bucket, Solutions, ThreadWorker, Worker, WorkerLost, joined

BLOCK = 4
RULES = BatchRules(max_batch=32)


def version(number: int) -> ServedVersion:
    return ServedVersion(
        name="shallow_water",
        version=number,
        problem="shallow_water",
        scheme="hllc-muscl-v1",
        grids=((8, 8),),
        extent=(5.0, 5.0),
        walls="outflow",
        frame_interval=0.01,
        history=1,
        frames=BLOCK,
    )


class Rising(LoopWorker):
    """Adds ``by`` to h in every step; dies ``deaths`` times once so many batches were computed."""

    def __init__(self, by: float = 1.0, lives: int = 10**9, deaths: int = 0) -> None:
        self.by = by
        self.lives = lives
        self.deaths = deaths
        self.rows: list[int] = []
        self.buckets: list[Bucket] = []
        self.memory: list[Any] = []

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        await asyncio.sleep(0)
        if len(self.rows) >= self.lives and self.deaths:
            self.deaths -= 1
            raise WorkerLost("it died")
        self.rows.append(batch.rows)
        self.buckets.append(batch.bucket)
        steps = self.by * np.arange(1, BLOCK + 1, dtype=np.float32)[:, None, None]
        frames = {name: values[:, None] + 0 * steps for name, values in batch.fields.items()}
        frames["h"] = frames["h"] + steps
        self.memory = list(frames.values())
        return Solutions(frames, (0,) * batch.rows)


class Held(Rising):
    """Waits for a gate that the test opens, once it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.asked = 0

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        self.asked += 1
        await self.gate.wait()
        return await super().run(parts, pad_to=pad_to)


class Told:
    """What was told of shadows and rollouts."""

    def __init__(self) -> None:
        self.differences: list[float] = []
        self.failed = 0
        self.open = 0
        self.frames = 0

    def shadow(self, model: str, version: str, shadow: str) -> "Told":  # noqa: ARG002
        return self

    def shadow_failed(self, model: str, shadow: str) -> None:  # noqa: ARG002
        self.failed += 1

    def observe(self, amount: float) -> None:
        self.differences.append(amount)

    def rollouts(self, problem: str) -> "Told":
        assert problem == "shallow_water"
        return self

    def began(self) -> None:
        self.open += 1

    def sent(self, frames: int = 1) -> None:
        self.frames += frames

    def ended(self) -> None:
        self.open -= 1


def with_solver(
    story: Callable[[Solver, Models], Any],
    workers: dict[int, Worker],
    route: Route | None = None,
    told: Told | None = None,
) -> None:
    async def run() -> None:
        models = Models()
        for number, worker in workers.items():
            models.add(version(number), Batcher(worker, RULES))
        models.route({"shallow_water": route or Route(name="shallow_water", main=1)})
        others = (solve_reference, advance_reference, bound_errors)
        queues = Queues(*(Batcher(ThreadWorker(each), RULES) for each in others))
        async with Solver(models, queues, Limits(), told) as solver, asyncio.timeout(60):
            await story(solver, models)

    asyncio.run(run())


def request(depth: float = 1.0, **options: Any) -> RolloutRequest:
    state = {"h": np.full((8, 8), depth, np.float32)}
    return RolloutRequest("shallow_water", **({"state": state, "steps": 12} | options))


async def depths(solver: Solver, wanted: RolloutRequest) -> list[float]:
    rollout = await solver.roll_out(wanted)
    return [float(frame.fields["h"][0, 0, 0]) async for frame in rollout.frames]


async def read(rollout: Rollout, seen: list[Frame]) -> None:
    async for frame in rollout.frames:
        seen.append(frame)  # noqa: PERF401 those before a failure count


def test_many_rollouts_share_their_batches() -> None:
    worker, told = Rising(), Told()

    async def story(solver: Solver, _: Models) -> None:
        wanted = [request(float(n)) for n in range(1, 201)]
        found = await asyncio.gather(*(depths(solver, each) for each in wanted))
        for n, each in enumerate(found, start=1):
            assert each == [float(n + step) for step in range(1, 13)]

    with_solver(story, {1: worker}, told=told)
    assert sum(worker.rows) == 200 * 3
    assert np.mean(worker.rows) > 16
    assert (told.open, told.frames) == (0, 200 * 12)


def test_a_rollout_goes_on_when_its_worker_dies_once() -> None:
    worker = Rising(lives=1, deaths=1)

    async def story(solver: Solver, _: Models) -> None:
        assert await depths(solver, request()) == [float(1 + n) for n in range(1, 13)]

    with_solver(story, {1: worker})


def test_a_rollout_that_lost_its_worker_says_where_to_go_on() -> None:
    worker = Rising(lives=2, deaths=2)

    async def story(solver: Solver, _: Models) -> None:
        rollout = await solver.roll_out(request())
        seen: list[Frame] = []
        with pytest.raises(errors.WorkerLost, match="start_step=8") as lost:
            await read(rollout, seen)
        assert [frame.step for frame in seen] == list(range(1, 9))
        assert (lost.value.step, lost.value.retry_after) == (8, 1)
        state = {name: values[0] for name, values in seen[-1].fields.items()}
        rest = await depths(solver, request(state=state, start_step=8))
        assert rest == [10.0, 11.0, 12.0, 13.0]

    with_solver(story, {1: worker})


def test_a_rollout_stays_with_its_version_while_another_takes_over_its_name() -> None:
    old, new = Rising(), Rising(by=100.0)

    async def story(solver: Solver, models: Models) -> None:
        rollout = await solver.roll_out(request())
        frames = rollout.frames
        first = await anext(frames)
        models.route({"shallow_water": Route(name="shallow_water", main=2)})
        retired = models.remove(version(1).reference)
        released = asyncio.create_task(retired.released())
        assert await depths(solver, request()) == [float(1 + 100 * n) for n in range(1, 13)]
        assert not released.done()
        rest = [float(frame.fields["h"][0, 0, 0]) async for frame in frames]
        assert [float(first.fields["h"][0, 0, 0]), *rest] == [float(1 + n) for n in range(1, 13)]
        del rollout, frames
        await released
        await retired.queue.close()

    with_solver(story, {1: old, 2: new})


def test_a_version_that_has_to_go_ends_its_rollouts_with_a_place_to_go_on_from() -> None:
    async def story(solver: Solver, models: Models) -> None:
        rollout = await solver.roll_out(request())
        await anext(rollout.frames)
        models.route({"shallow_water": Route(name="shallow_water", main=2)})
        retired = models.remove(version(1).reference)
        # nobody waits for ever for a reader
        await retired.queue.close()
        with pytest.raises(errors.WorkerLost) as lost:
            await read(rollout, [])
        assert lost.value.step == BLOCK

    with_solver(story, {1: Rising(), 2: Rising()})


def test_the_first_block_is_compared_with_the_shadow_s() -> None:
    told = Told()
    route = Route(name="shallow_water", main=1, shadow=2)

    async def story(solver: Solver, _: Models) -> None:
        assert await depths(solver, request()) == [float(1 + n) for n in range(1, 13)]
        while not told.differences:
            await asyncio.sleep(0)

    shadow = Rising(by=2.0)
    with_solver(story, {1: Rising(), 2: shadow}, route, told)
    frames = np.arange(2.0, 6.0)
    expected = np.linalg.norm(np.arange(1, 5)) / np.linalg.norm(frames)
    assert told.differences == [pytest.approx(expected)]
    assert len(shadow.rows) == 1


async def settle() -> None:
    """Let everybody do what can be done without the test."""
    for _ in range(50):
        await asyncio.sleep(0)


async def take(rollout: Rollout, count: int) -> list[int]:
    steps = []
    for _ in range(count):
        steps.append((await anext(rollout.frames)).step)
        await settle()
    return steps


def test_the_next_block_is_asked_for_when_half_of_this_one_is_taken_and_no_other() -> None:
    worker = Rising()

    async def story(solver: Solver, _: Models) -> None:
        rollout = await solver.roll_out(request(steps=3 * BLOCK))
        asked = []
        for _ in range(3 * BLOCK):
            await take(rollout, 1)
            asked.append(len(worker.rows))
        # with the third frame of four, two are left when it is asked for
        assert asked == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
        await rollout.close()

    with_solver(story, {1: worker})


def test_what_breaks_in_the_next_block_is_told_after_the_frames_of_this_one() -> None:
    worker = Rising(lives=1, deaths=2)

    async def story(solver: Solver, _: Models) -> None:
        rollout = await solver.roll_out(request())
        assert await take(rollout, BLOCK) == [1, 2, 3, 4]
        assert worker.deaths == 0
        with pytest.raises(errors.WorkerLost, match="start_step=4"):
            await anext(rollout.frames)

    with_solver(story, {1: worker})


@pytest.mark.parametrize("taken", [1, BLOCK - 1, BLOCK])
def test_who_leaves_takes_the_block_ahead_out_of_the_queue(taken: int) -> None:
    worker, told = Held(), Told()

    async def story(solver: Solver, models: Models) -> None:
        queue = models.find("shallow_water", None, "").queue
        worker.gate.set()
        rollout = await solver.roll_out(request(steps=1000))
        worker.gate.clear()
        other = asyncio.create_task(depths(solver, request(steps=BLOCK)))
        # its state is looked at in a thread before it is asked of the worker
        while worker.asked < 2:
            await asyncio.sleep(0)
        await take(rollout, taken)
        assert queue.waiting == (taken > BLOCK // 2)
        await rollout.close()
        assert (queue.waiting, told.open) == (0, 0)
        worker.gate.set()
        assert len(await other) == BLOCK
        assert worker.rows == [1, 1]

    with_solver(story, {1: worker}, told=told)


def test_written_frames_are_those_that_are_read() -> None:
    async def story(solver: Solver, _: Models) -> None:
        frames = await solver.roll_out(request(every=3))
        expected = [(frame.step, frame.fields["h"].tobytes()) async for frame in frames.frames]
        rollout = await solver.roll_out(request(every=3))
        written = [each async for each in rollout.written(lambda frame: [frame.fields["h"].data.cast("B")])]
        assert [(step, b"".join(parts)) for step, parts in written] == expected

    with_solver(story, {1: Rising()})


def test_what_a_slow_reader_holds_is_its_own() -> None:
    worker = Rising()

    async def story(solver: Solver, _: Models) -> None:
        rollout = await solver.roll_out(request())
        frame = await anext(rollout.frames)
        for values in frame.fields.values():
            assert not any(np.shares_memory(values, memory) for memory in worker.memory)
        await rollout.close()

    with_solver(story, {1: worker})


def test_every_batch_is_asked_for_in_the_way_of_the_ticket() -> None:
    worker = Rising()

    async def story(solver: Solver, _: Models) -> None:
        await depths(solver, request(ticket=Ticket(reproducible=True)))

    with_solver(story, {1: worker})
    assert {(each.reproducible, each.task, each.frames) for each in worker.buckets} == {
        (True, "advance", BLOCK)
    }


def test_the_deadline_is_that_of_the_last_frame() -> None:
    async def story(solver: Solver, _: Models) -> None:
        wanted = request(ticket=Ticket(deadline=0.0))
        with pytest.raises(DeadlineExceeded):
            await solver.roll_out(wanted)

    with_solver(story, {1: Rising()})

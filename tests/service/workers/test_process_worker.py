"""A worker behind a lane: the same answers as in a thread, and a clean end for whoever waits."""

import asyncio
import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from model_store.reference import Reference
from problems import Grid
from service import errors
from service.batching.batcher import Batcher
from service.errors import Overloaded
from service.workers import process_worker
from service.workers.arena import Arena
from service.workers.batch_token import ComputationFailed, outputs_of
from service.workers.lane import BlockingLane, lane_pair
from service.workers.lane_server import HostRunner, LaneServer, Watch
from service.workers.process_worker import Patience, ProcessWorker
from service.workers.worker import (
    BOUND_FIELDS,
    CERTIFIED_FIELDS,
    Batch,
    Bucket,
    Compute,
    Solutions,
    ThreadWorker,
    WorkerLost,
)

BUCKET = Bucket("darcy", Reference("darcy", 1), "tpfa-harmonic-v1", Grid((4, 6), (1.0, 1.5)), "float32")
POISON = -666.0


def halves(batch: Batch) -> Solutions:
    """Half the permeability plus the source; breaks on poison, and cannot solve where the source is 0."""
    if POISON in batch.fields["permeability"]:
        raise ArithmeticError("poisoned")
    source = batch.fields["source"]
    return Solutions(
        {"pressure": 0.5 * batch.fields["permeability"] + source[:, None, None]},
        tuple(range(batch.rows)),
        {int(row): "no source" for row in np.flatnonzero(source == 0)},
    )


def part(*values: float, source: float = 1.0, arena: Arena | None = None) -> Batch:
    """Rows of constant permeability."""
    shape = (len(values), *BUCKET.grid.shape)
    field = np.empty(shape, np.float32) if arena is None else arena.allocate(shape, np.float32)
    field[:] = np.array(values)[:, None, None]
    return Batch(BUCKET, {"permeability": field, "source": np.full(len(values), source, np.float32)})


class Server:
    """A worker in a thread of this process."""

    def __init__(self, compute: Compute = halves) -> None:
        self.batches: list[Batch] = []
        self._compute = compute
        self.lanes = LaneServer(HostRunner(self._record), Watch())
        self._thread = threading.Thread(target=self.lanes.watch.run)
        self._thread.start()

    def _record(self, batch: Batch) -> Solutions:
        self.batches.append(batch)
        return self._compute(batch)

    def serve(self, worker: ProcessWorker, arena: Arena) -> None:
        ours, theirs = lane_pair()
        self.lanes.add("front 0", theirs, os.dup(arena.fd))
        worker.attach(ours)

    def stop(self) -> None:
        self.lanes.watch.drain()
        self._thread.join()
        self.lanes.close()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(2**20)
    yield arena
    arena.close()


@contextmanager
def serving(compute: Compute = halves) -> Iterator[Server]:
    server = Server(compute)
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("pad_to", [None, 2, 8])
def test_it_answers_as_a_thread_does(arena: Arena, pad_to: int | None) -> None:
    parts = [part(1, 2), part(3, source=0.0), part(4, 5, arena=arena)]

    async def story(server: Server) -> tuple[Solutions, Solutions]:
        worker, thread = ProcessWorker(arena), ThreadWorker(halves)
        server.serve(worker, arena)
        answers = await worker.run(parts, pad_to=pad_to), await thread.run(parts, pad_to=pad_to)
        worker.close()
        thread.close()
        return answers

    with serving() as server:
        found, expected = asyncio.run(story(server))
        assert server.batches[0].rows == max(5, pad_to or 0)
    assert np.array_equal(found.fields["pressure"], expected.fields["pressure"])
    assert found.iterations == expected.iterations
    assert found.unsolved == expected.unsolved == {2: "no source"}
    assert arena.offset_of(found.fields["pressure"]) is not None
    assert found.seconds > 0


def test_a_batch_of_very_many_parts_is_one_batch(arena: Arena) -> None:
    # what is said of it takes several packets
    parts = [part(value, arena=arena) for value in range(1500)]
    # every other part stays, so that no two rows lie together
    kept = parts[::2] + parts[1::2]

    async def story(server: Server) -> Solutions:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        answer = await worker.run(kept)
        worker.close()
        return answer

    with serving() as server:
        found = asyncio.run(story(server)).fields["pressure"][:, 0, 0]
    assert found.tolist() == [0.5 * value + 1 for value in [*range(0, 1500, 2), *range(1, 1500, 2)]]


def test_rows_that_lie_together_are_not_copied(arena: Arena) -> None:
    whole = arena.allocate((4, *BUCKET.grid.shape), np.float32)
    whole[:] = 1.0
    sources = arena.allocate((4,), np.float32)
    sources[:] = 1.0
    parts = [
        Batch(BUCKET, {"permeability": whole[rows], "source": sources[rows]})
        for rows in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]

    def doubles(batch: Batch) -> Solutions:
        # the worker sees the very memory of the front
        batch.fields["permeability"][:] = 2.0
        return Solutions({"pressure": batch.fields["permeability"]}, (0,) * batch.rows)

    async def story(server: Server) -> None:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        await worker.run(parts)
        worker.close()

    with serving(doubles) as server:
        asyncio.run(story(server))
    assert (whole == 2.0).all()


def test_a_batch_that_breaks_breaks_alone(arena: Arena, caplog: pytest.LogCaptureFixture) -> None:
    async def story(server: Server) -> None:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        answers = await asyncio.gather(
            *(worker.run([part(value)]) for value in (1.0, POISON, 3.0)), return_exceptions=True
        )
        worker.close()
        for answer, value in zip(answers, (1.5, None, 2.5), strict=True):
            if value is None:
                assert isinstance(answer, ComputationFailed)
                assert str(answer) == "ArithmeticError: poisoned"
            else:
                assert isinstance(answer, Solutions)
                assert (answer.fields["pressure"] == value).all()

    with serving() as server:
        asyncio.run(story(server))
    assert "a batch broke" in caplog.text


WRONG: dict[str, Compute] = {
    "a row too many": lambda batch: Solutions({"pressure": np.zeros((2, 4, 6))}, (0, 0)),  # noqa: ARG005
    "another grid": lambda batch: Solutions({"pressure": np.zeros((1, 6, 4))}, (0,)),  # noqa: ARG005
    "another field": lambda batch: Solutions({"velocity": np.zeros((1, 4, 6))}, (0,)),  # noqa: ARG005
    "no JSON": lambda batch: Solutions(  # noqa: ARG005
        {"pressure": np.zeros((1, 4, 6))}, (0,), {0: "\ud800"}
    ),
    "what float32 cannot hold of it": lambda batch: Solutions(  # noqa: ARG005
        {"pressure": np.zeros((1, 4, 6), complex)}, (0,)
    ),
}


@pytest.mark.parametrize("compute", WRONG.values(), ids=WRONG.keys())
def test_an_answer_to_something_else_is_refused(arena: Arena, compute: Compute) -> None:
    async def story(server: Server) -> None:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        with pytest.raises(ComputationFailed):
            await worker.run([part(1)])
        # it goes on
        with pytest.raises(ComputationFailed):
            await worker.run([part(1)])
        worker.close()

    with serving(compute) as server:
        asyncio.run(story(server))


class Gate:
    """A compute that waits for the test."""

    def __init__(self) -> None:
        self.busy = threading.Event()
        self.open = threading.Event()

    def __call__(self, batch: Batch) -> Solutions:
        self.busy.set()
        assert self.open.wait(60)
        return halves(batch)


def test_the_arrays_of_a_batch_outlive_whoever_waited_for_it(arena: Arena) -> None:
    gate = Gate()

    async def story(server: Server) -> None:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        leaving = asyncio.create_task(worker.run([part(1)]))
        await asyncio.to_thread(gate.busy.wait)
        held = arena.used
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        # the worker still writes there
        assert arena.used == held > 0
        gate.open.set()
        answer = await worker.run([part(2)])
        assert (answer.fields["pressure"] == 2).all()
        del answer
        # the loop still holds the future that it woke us for
        await asyncio.sleep(0)
        assert arena.used == 0
        worker.close()

    with serving(gate) as server:
        asyncio.run(story(server))


def test_the_end_of_a_worker_ends_its_batches_and_the_next_one_takes_over(arena: Arena) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena, "darcy@1")
        assert not worker.available
        early = asyncio.create_task(worker.run([part(1)]))
        ours, theirs = lane_pair()
        worker.attach(ours)
        assert worker.available
        silent = BlockingLane(theirs)
        assert (await asyncio.to_thread(silent.receive))[0]["rows"] == 1
        silent.close()
        with pytest.raises(WorkerLost, match=r"darcy@1 ended while it computed"):
            await early
        assert not worker.available
        assert arena.used == 0
        waiting = asyncio.create_task(worker.run([part(2)]))
        with serving() as server:
            server.serve(worker, arena)
            assert ((await waiting).fields["pressure"] == 2).all()
            worker.close()

    asyncio.run(story())


def test_who_tries_again_at_once_waits_for_the_next_worker(arena: Arena) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena)
        ours, theirs = lane_pair()
        worker.attach(ours)
        theirs.close()
        # the loop has not heard of it yet
        with pytest.raises(WorkerLost, match="gone"):
            await worker.run([part(1)])
        again = asyncio.create_task(worker.run([part(2)]))
        await asyncio.sleep(0)
        assert not again.done()
        with serving() as server:
            server.serve(worker, arena)
            assert ((await again).fields["pressure"] == 2).all()
            worker.close()

    asyncio.run(story())


def test_a_worker_that_does_not_come_back_keeps_nobody_waiting(arena: Arena) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena, "darcy@1", patience=Patience(absent=0.0))
        ours, theirs = lane_pair()
        worker.attach(ours)
        theirs.close()
        queue = Batcher(worker)
        assert queue.available
        # the first one hears that it is gone, and all of them that no other comes
        for _ in range(3):
            with pytest.raises(errors.WorkerLost, match=r"darcy@1 has had no process for 0 s") as lost:
                await queue.submit(part(1))
            assert lost.value.retry_after > 1
        assert not queue.available
        assert arena.used == 0
        with serving() as server:
            server.serve(worker, arena)
            assert queue.available
            assert ((await queue.submit(part(2))).solutions.fields["pressure"] == 2).all()
            await queue.close()
            assert not queue.available

    asyncio.run(story())


def test_a_process_that_does_not_answer_is_given_up_and_keeps_its_memory_until_it_ends(arena: Arena) -> None:
    gate = Gate()
    hung: list[str] = []

    async def story(silent: Server) -> None:
        worker = ProcessWorker(
            arena, "darcy@1", patience=Patience(silent=0.0), on_hung=lambda: hung.append("darcy@1")
        )
        silent.serve(worker, arena)
        with pytest.raises(WorkerLost, match=r"darcy@1 does not answer"):
            await worker.run([part(1)])
        assert hung == ["darcy@1"]
        assert not worker.available
        # it may still write there
        assert arena.used > 0
        gate.open.set()
        while arena.used:
            await asyncio.sleep(0)
        worker.close()

    with serving(gate) as silent:
        asyncio.run(story(silent))


def test_a_process_that_was_replaced_and_does_not_answer_is_nobodys_trouble(arena: Arena) -> None:
    gate = Gate()
    hung: list[str] = []

    async def story(old: Server, new: Server) -> None:
        patience = Patience(silent=0.0)
        worker = ProcessWorker(arena, patience=patience, on_hung=lambda: hung.append("it"))
        old.serve(worker, arena)
        slow = asyncio.create_task(worker.run([part(1)]))
        await asyncio.sleep(0)
        new.serve(worker, arena)
        with pytest.raises(WorkerLost, match="does not answer"):
            await slow
        assert worker.available
        assert hung == []
        gate.open.set()
        # its lane ends with its answer, and is to be closed by a loop that still runs
        while arena.used:
            await asyncio.sleep(0)
        worker.close()

    with serving(gate) as old, serving() as new:
        asyncio.run(story(old, new))


def test_who_took_long_before_may_take_long_again(arena: Arena) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena)
        assert worker._longest(32) == 60
        worker.learn(2, 8.0)
        worker.learn(2, 1.0)
        assert worker._longest(32) == 20 * 32 * 4
        assert worker._longest(0) == 60

    asyncio.run(story())


def test_who_is_replaced_answers_what_it_has(arena: Arena) -> None:
    gate = Gate()

    async def story(old: Server, new: Server) -> None:
        worker = ProcessWorker(arena)
        old.serve(worker, arena)
        slow = asyncio.create_task(worker.run([part(1)]))
        await asyncio.to_thread(gate.busy.wait)
        new.serve(worker, arena)
        assert ((await worker.run([part(3)])).fields["pressure"] == 2.5).all()
        gate.open.set()
        assert ((await slow).fields["pressure"] == 1.5).all()
        worker.close()

    with serving(gate) as old, serving() as new:
        asyncio.run(story(old, new))
        assert (len(old.batches), len(new.batches)) == (1, 1)


@pytest.mark.parametrize(
    "close", [ProcessWorker.close, lambda worker: threading.Thread(target=worker.close).start()]
)
def test_a_closed_worker_keeps_nobody_waiting(arena: Arena, close: Callable[[ProcessWorker], None]) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena)
        ours, theirs = lane_pair()
        worker.attach(ours)
        worker.detach()
        waiting = asyncio.create_task(worker.run([part(1)]))
        await asyncio.sleep(0)
        close(worker)
        with pytest.raises(WorkerLost, match="closed"):
            await waiting
        with pytest.raises(WorkerLost, match="closed"):
            await worker.run([part(1)])
        theirs.close()
        late, other = lane_pair()
        worker.attach(late)
        assert late.fileno() < 0
        other.close()

    asyncio.run(story())


def test_two_fronts_take_turns(arena: Arena) -> None:
    gate = Gate()
    order: list[float] = []

    def compute(batch: Batch) -> Solutions:
        order.append(float(batch.fields["permeability"][0, 0, 0]))
        return gate(batch)

    async def story(server: Server) -> None:
        busy, other = ProcessWorker(arena), ProcessWorker(arena)
        server.serve(busy, arena)
        server.serve(other, arena)
        tasks = [asyncio.create_task(busy.run([part(value)])) for value in (1, 1, 1, 1)]
        await asyncio.to_thread(gate.busy.wait)
        tasks.append(asyncio.create_task(other.run([part(2)])))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*tasks)
        busy.close()
        other.close()

    with serving(compute) as server:
        asyncio.run(story(server))
    # those of the busy front did not all go first
    assert order.index(2) <= 2


def test_a_front_that_goes_leaves_the_others_alone(arena: Arena) -> None:
    gate = Gate()

    async def story(server: Server) -> None:
        staying, going = ProcessWorker(arena), ProcessWorker(arena)
        server.serve(staying, arena)
        server.serve(going, arena)
        lost = asyncio.create_task(going.run([part(1)]))
        await asyncio.to_thread(gate.busy.wait)
        # as when its process dies: nobody is there to hear the answer
        assert going._link is not None
        going._link.lane.close()
        gate.open.set()
        assert ((await staying.run([part(2)])).fields["pressure"] == 2).all()
        lost.cancel()
        staying.close()

    with serving(gate) as server:
        asyncio.run(story(server))


BAD_TOKENS = {
    "nothing": {},
    "no rows": {"id": 1, "rows": 0, "bucket": "", "in": {}, "out": {}},
    "beyond the end": {"in": {"a": ["<f4", [4], [[2**20 - 8, 1]]]}},
    "before the begin": {"in": {"a": ["<f4", [4], [[-64, 1]]]}},
    "a size that wraps around": {"in": {"a": ["<f8", [2**61], [[0, 1]]]}},
    "a negative side": {"in": {"a": ["<f4", [-4], [[0, 1]]]}},
    "objects": {"in": {"a": ["|O", [4], [[0, 1]]]}},
    "other rows": {"in": {"a": ["<f4", [4], [[0, 2]]]}},
    "no dtype": {"in": {"a": ["spam", [4], [[0, 1]]]}},
    "not a list": {"in": 3},
}


@pytest.mark.parametrize("bad", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_no_token_ends_the_worker(arena: Arena, bad: dict[str, object]) -> None:
    async def story(server: Server) -> None:
        ours, theirs = lane_pair()
        server.lanes.add("front 9", theirs, os.dup(arena.fd))
        lane = BlockingLane(ours)
        lane.send({"id": 5, "rows": 1, "pad_to": None, "bucket": "{}", "in": {}, "out": {}, **bad})
        answer, _ = await asyncio.to_thread(lane.receive)
        assert "error" in answer
        lane.close()
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        assert ((await worker.run([part(2)])).fields["pressure"] == 2).all()
        worker.close()

    with serving() as server:
        asyncio.run(story(server))


def test_a_full_arena_refuses_and_nothing_stays_behind() -> None:
    arena = Arena(2**12)

    async def story(server: Server) -> None:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        with pytest.raises(Overloaded):
            await worker.run([part(*range(1, 100))])
        assert arena.used == 0
        assert ((await worker.run([part(2)])).fields["pressure"] == 2).all()
        worker.close()

    with serving() as server:
        asyncio.run(story(server))


def test_the_memory_of_a_burst_is_given_back_when_nothing_is_asked(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_worker, "TRIM_SECONDS", 0.0)
    trimmed = asyncio.Event()
    monkeypatch.setattr(arena, "trim", trimmed.set)

    async def story(server: Server) -> None:
        worker = ProcessWorker(arena)
        server.serve(worker, arena)
        await worker.run([part(2)])
        await trimmed.wait()
        worker.close()

    with serving() as server:
        asyncio.run(story(server))


def test_every_task_says_what_it_gives() -> None:
    darcy = Bucket("darcy", None, "s", Grid((4, 6)), "float32")
    field, number = ((4, 6), np.dtype("f4")), ((), np.dtype("f4"))
    assert outputs_of(darcy) == {"pressure": field}
    assert outputs_of(replace(darcy, task="vjp")) == {
        "gradient.permeability": field,
        "gradient.source": number,
    }
    double, doubles = ((), np.dtype("f8")), ((4, 6), np.dtype("f8"))
    certified = dict.fromkeys(CERTIFIED_FIELDS, double)
    assert outputs_of(replace(darcy, task="certify")) == certified
    assert outputs_of(replace(darcy, task="refine", dtype="float64")) == {"pressure": doubles, **certified}
    three = replace(darcy, directions=3)
    of_each, error = ((3, 4, 6), np.dtype("f8")), ((3,), np.dtype("f8"))
    assert outputs_of(replace(three, task="adjoint")) == {
        "gradient.permeability": of_each,
        "gradient.source": error,
        "error": error,
    }
    assert outputs_of(replace(three, task="tangent")) == {"tangent.pressure": of_each, "error": error}
    assert outputs_of(replace(darcy, task="jvp")) == {"tangent.pressure": field}
    water = Bucket("shallow_water", Reference("w", 1), "s", Grid((4, 6)), "float32", chosen=(2, 4))
    names, two = ("h", "hu", "hv"), ((2, 4, 6), np.dtype("f4"))
    assert outputs_of(replace(water, task="vjp")) == {f"gradient.{name}": field for name in names}
    assert outputs_of(replace(water, task="jvp")) == {f"tangent.{name}": two for name in names}
    assert outputs_of(replace(three, task="quantities")) == {"quantities": ((3, 2), np.dtype("f8"))}
    assert outputs_of(replace(darcy, task="bound")) == dict.fromkeys(BOUND_FIELDS, ((), np.dtype("f8")))
    water = replace(darcy, problem="shallow_water", task="advance", frames=5)
    frames = dict.fromkeys(("h", "hu", "hv"), ((5, 4, 6), np.dtype("f4")))
    assert outputs_of(water) == frames
    version = Reference("shallow_water", 1)
    invariants = {"invariants": ((5, 6), np.dtype("f8"))}
    assert outputs_of(replace(water, version=version)) == {**frames, **invariants}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_every_batch_has_one_outcome_and_all_memory_comes_back(
    arena: Arena, seed: int
) -> None:
    rng = random.Random(seed)

    async def story() -> None:
        worker = ProcessWorker(arena)
        servers = [Server()]
        servers[0].serve(worker, arena)
        tasks: list[tuple[float, asyncio.Task[Solutions]]] = []
        for number in range(200):
            value = float(number)
            where = arena if rng.random() < 0.5 else None
            parts = [part(value, arena=where), part(value, value)][: rng.randint(1, 2)]
            tasks.append((value, asyncio.create_task(worker.run(parts, pad_to=rng.choice([None, 4])))))
            match rng.randrange(8):
                case 0:
                    rng.choice(tasks)[1].cancel()
                case 1:
                    await asyncio.sleep(0)
                case 2:
                    await asyncio.wait([rng.choice(tasks)[1]])
                case 3 if rng.random() < 0.3:
                    # it goes in the middle of what it does, as a process that is killed
                    servers[-1].lanes.watch.stop()
                    servers[-1].lanes.watch.order(lambda: None)
                    servers[-1].stop()
                    servers.append(Server())
                    servers[-1].serve(worker, arena)
        outcomes = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        for (value, _), outcome in zip(tasks, outcomes, strict=True):
            if isinstance(outcome, Solutions):
                assert (outcome.fields["pressure"] == 0.5 * value + 1).all()
            else:
                assert isinstance(outcome, (asyncio.CancelledError, WorkerLost)), outcome
        link = worker._link
        worker.close()
        servers[-1].stop()
        # what nobody waited for is answered, too, and then its lane ends
        while link is not None and not link.lane.closed:
            await asyncio.sleep(0)
        del outcomes, outcome
        tasks.clear()

    asyncio.run(story())
    gc.collect()
    assert arena.used == 0

"""Steps of a rollout compared with the reference solver's, without a protocol."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import pytest
from loop_worker import LoopWorker
from numpy.typing import NDArray

from problems import EVOLUTION_PROBLEMS, Grid
from service.batching.batcher import Batcher, BatchRules
from service.checked_march import chosen_steps
from service.errors import InvalidField, WorkerLost
from service.grpc.frame_message import FrameWriter
from service.http.rollout_wire import Lines
from service.pb import solver_pb2 as pb
from service.rollout import ALL, Frame, RolloutRequest
from service.settings import Limits
from service.solver import Queues, Solver
from service.versions.models import Models
from service.versions.routing import Route
from service.versions.served import ServedVersion
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import Batch, Solutions, ThreadWorker, Worker, joined
from service.workers.worker import WorkerLost as Died

PROBLEM = EVOLUTION_PROBLEMS["diffusion_reaction"]
GRID = Grid((16, 16), PROBLEM.grid.extent, PROBLEM.grid.origin)
BLOCK, START = 4, 10
KNOWN: tuple[Literal["defect", "exponential_bound"], ...] = ("defect", "exponential_bound")
VERSION = ServedVersion(
    name="diffusion_reaction",
    version=1,
    problem="diffusion_reaction",
    scheme=PROBLEM.schemes[0],
    grids=(GRID.shape,),
    extent=GRID.extent,
    walls="zero_flux",
    frame_interval=PROBLEM.frame_interval,
    history=1,
    frames=BLOCK,
)
# numbers of float32
SENT = {
    name: values.astype(np.float32).astype(np.float64)
    for name, values in PROBLEM.sample("band_limited", {"correlation_length": 0.4}, 5, 0, GRID).items()
}


class Biased(LoopWorker):
    """Steps as the reference solver does, and adds ``bias`` to both fields of every frame."""

    def __init__(self, bias: float = 0.0, spoil: int = -1, start: int = START) -> None:
        self.bias = bias
        # the step of which the frame is none
        self.spoil = spoil
        self.step = start

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        rows = [
            self._row({name: values[row] for name, values in batch.fields.items()})
            for row in range(batch.rows)
        ]
        self.step += BLOCK
        fields = {name: np.array([[frame[name] for frame in row] for row in rows]) for name in batch.fields}
        return Solutions(fields, (0,) * batch.rows)

    def _row(self, state: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
        frames = []
        for step in range(self.step, self.step + BLOCK):
            (stepped,) = islice(PROBLEM.frames(state, GRID, start=step), 1)
            state = {name: values + self.bias for name, values in stepped.items()}
            if step + 1 == self.spoil:
                state["u"] = state["u"] + 1e3
            frames.append(state)
            if step + 1 == self.spoil:
                state = {name: np.zeros(GRID.shape) for name in state}
        return frames


class Marches(LoopWorker):
    """The reference solver in the loop of the test, which opens the gate and says what goes wrong."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()
        self.rows: list[int] = []
        self.unsolved: dict[int, str] = {}
        self.deaths = 0

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        self.asked.set()
        await self.gate.wait()
        if self.deaths:
            self.deaths -= 1
            raise Died("it died")
        batch = joined(parts)
        self.rows.append(batch.rows)
        return advance_reference(batch)._replace(unsolved=self.unsolved)


@dataclass
class Service:
    solver: Solver
    queue: Batcher
    marches: Marches

    async def frames(self, **options: Any) -> list[Frame]:
        rollout = await self.solver.roll_out(request(**options))
        return [frame async for frame in rollout.frames]


def request(**options: Any) -> RolloutRequest:
    given: dict[str, Any] = {
        "state": SENT,
        "steps": START + 8,
        "start_step": START,
        "dtype": "float64",
        "defects": ALL,
    }
    return RolloutRequest("diffusion_reaction", **(given | options))


def tell(
    story: Callable[[Service], Awaitable[None]],
    worker: Worker | None = None,
    limits: Limits | None = None,
    **version: Any,
) -> None:
    """Runs a story with a service."""

    async def run() -> None:
        rules, models, marches = BatchRules(max_batch=32), Models(), Marches()
        models.add(VERSION.model_copy(update=version), Batcher(worker or Biased(), rules))
        models.route({"diffusion_reaction": Route(name="diffusion_reaction", main=1)})
        queues = Queues(
            Batcher(ThreadWorker(solve_reference), rules),
            Batcher(marches, rules),
            Batcher(ThreadWorker(bound_errors), rules),
        )
        async with Solver(models, queues, limits or Limits()) as solver, asyncio.timeout(60):
            await story(Service(solver, queues.marches, marches))

    # compiles what is missing, which may take long on a busy machine
    truth(1)
    asyncio.run(run())


def difference(one: Any, other: Any) -> float:
    """Root mean square, by hand."""
    squares = [(np.asarray(one[name], np.float64) - other[name]) ** 2 for name in ("u", "v")]
    return math.sqrt(float(np.mean(squares)))


def plain(frame: Frame) -> dict[str, NDArray[Any]]:
    return {name: values[0] for name, values in frame.fields.items()}


def truth(frames: int) -> list[Any]:
    """What the reference solver makes of the state that was sent."""
    return list(islice(PROBLEM.frames(SENT, GRID, start=START), frames))


def test_some_of_the_frames_that_are_sent_are_chosen() -> None:
    chosen = chosen_steps(10, 100, 3, 7)
    assert len(chosen) == 7
    assert all(10 < step <= 100 and step % 3 == 0 for step in chosen)
    assert chosen == chosen_steps(10, 100, 3, 7)
    assert chosen != chosen_steps(11, 100, 3, 7)
    for count in (30, 31, ALL):
        assert chosen_steps(10, 100, 3, count) == frozenset(range(12, 101, 3))


# the solver's steps are shorter in the first frames
@pytest.mark.parametrize("start", [0, START])
def test_the_solver_itself_has_no_defects_and_its_bound_is_nothing(start: int) -> None:
    async def story(service: Service) -> None:
        frames = await service.frames(start_step=start, steps=start + BLOCK)
        assert [frame.step for frame in frames] == [start + n for n in (1, 2, 3, 4)]
        assert np.array([frame.defects for frame in frames]) == pytest.approx(0.0, abs=1e-12)
        assert np.array([frame.bounds for frame in frames]) == pytest.approx(0.0, abs=1e-11)
        assert service.marches.rows == [BLOCK]

    tell(story, Biased(start=start))


def test_a_defect_is_what_was_added_in_a_step() -> None:
    async def story(service: Service) -> None:
        frames = await service.frames()
        assert len(frames) == 8
        # between two blocks the state goes through float32
        assert np.array([frame.defects for frame in frames]) == pytest.approx(1e-3, rel=1e-3)
        assert service.marches.rows == [BLOCK, BLOCK]

    tell(story, Biased(1e-3))


def test_without_being_asked_nothing_is_compared() -> None:
    async def story(service: Service) -> None:
        for frame in await service.frames(defects=0):
            assert (frame.defects, frame.bounds, frame.checked(0)) == ((), (), {})
        assert service.marches.rows == []

    tell(story)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_sample_is_of_the_frames_that_are_sent(every: int) -> None:
    async def story(service: Service) -> None:
        frames = await service.frames(every=every, defects=2)
        looked = [frame for frame in frames if "defect" in frame.checked(0)]
        assert {frame.step for frame in looked} == chosen_steps(START, START + 8, every, 2)
        assert len(looked) == 2
        # the frame before one that is sent was not sent, and is looked at all the same
        assert [frame.defects[0] for frame in looked] == pytest.approx([1e-3] * 2, rel=1e-3)
        assert sum(service.marches.rows) == 2

    tell(story, Biased(1e-3))


def test_every_row_of_a_batch_has_its_own() -> None:
    both = {name: np.stack([values, -values]) for name, values in SENT.items()}

    async def story(service: Service) -> None:
        frames = await service.frames(state=both, defects=3)
        looked = [frame for frame in frames if frame.checked(0)]
        assert len(looked) == 3
        for frame in looked:
            assert frame.defects == pytest.approx((1e-3, 1e-3), rel=1e-3)
        assert sum(service.marches.rows) == 6

    tell(story, Biased(1e-3))


@pytest.mark.parametrize("bias", [1e-4, 1e-2])
def test_the_bound_holds_for_the_frames_that_leave(bias: float) -> None:
    async def story(service: Service) -> None:
        frames = await service.frames(dtype="float32", steps=START + 12)
        bounds, held = [], 0
        for frame, exact in zip(frames, truth(12), strict=True):
            error = difference(plain(frame), exact)
            for bound in frame.bounds:
                bounds.append(bound)
                if not math.isnan(bound):
                    # the solver's own time steps part a little from the flow that the proof is of
                    assert error <= bound * (1 + 1e-3)
                    held += 1
        assert held >= 8
        assert bounds[0] == pytest.approx(bias, rel=1e-3)
        # by hand: what there was grows like e^t
        growth = math.exp(PROBLEM.frame_interval)
        for before, after, frame in zip(bounds, bounds[1:], frames[1:], strict=False):
            if not math.isnan(after):
                assert after == pytest.approx(growth * before + frame.defects[0])

    tell(story, Biased(bias))


def test_a_bound_that_the_frame_itself_meets_is_left_out() -> None:
    async def story(service: Service) -> None:
        for frame in await service.frames(steps=START + 20):
            size = difference(plain(frame), {"u": 0.0, "v": 0.0})
            # each step is wrong by 0.05 and the frames are about as large as the sum of all
            known = frame.checked(0)
            assert known["defect"] == pytest.approx(0.05, rel=1e-3)
            assert ("exponential_bound" in known) == (frame.bounds[0] <= size)
            if "exponential_bound" not in known:
                lost.append(frame.step)
        assert lost
        assert lost[0] > START + 1

    lost: list[int] = []
    tell(story, Biased(0.05))


def test_one_step_that_was_not_compared_ends_the_bound() -> None:
    async def story(service: Service) -> None:
        service.marches.unsolved = {2: "too steep"}
        frames = await service.frames()
        names = [sorted(frame.checked(0)) for frame in frames]
        both, one = ["defect", "exponential_bound"], ["defect"]
        assert names == [both, both, [], one, one, one, [], one]

    tell(story)


def test_where_every_second_frame_is_compared_there_is_no_bound() -> None:
    async def story(service: Service) -> None:
        frames = await service.frames(every=2)
        assert [sorted(frame.checked(0)) for frame in frames] == [["defect"]] * 4

    tell(story)


def test_a_frame_that_the_solver_would_not_start_from_has_no_defect_after_it() -> None:
    async def story(service: Service) -> None:
        # the frame of step 13 is none, and nobody sees it
        frames = await service.frames(every=2)
        assert [frame.step for frame in frames] == [12, 14, 16, 18]
        assert [bool(frame.checked(0)) for frame in frames] == [True, False, True, True]

    tell(story, Biased(spoil=13))


def test_what_takes_too_long_is_not_compared() -> None:
    cost = PROBLEM.cell_steps(SENT, GRID, start=START + 1)

    async def story(service: Service) -> None:
        frames = await service.frames()
        assert len(frames) == 8
        assert service.marches.rows == [2, 2]
        assert [frame.step for frame in frames if frame.checked(0)] == [11, 12, 15, 16]

    tell(story, limits=Limits(cell_steps=int(2.5 * cost)))


def test_a_rollout_that_goes_on_has_bounds_from_there() -> None:
    worker = Biased(1e-3)

    async def story(service: Service) -> None:
        whole = await service.frames()
        worker.step = START + BLOCK
        rest = await service.frames(state=plain(whole[3]), start_step=START + BLOCK)
        assert [frame.step for frame in rest] == [15, 16, 17, 18]
        assert rest[0].bounds == rest[0].defects
        assert whole[4].bounds[0] > whole[4].defects[0]

    tell(story, worker)


def test_a_solver_that_dies_names_the_step_to_go_on_from() -> None:
    async def story(service: Service) -> None:
        service.marches.deaths = 2
        with pytest.raises(WorkerLost, match=f"start_step={START}") as lost:
            await service.frames()
        assert lost.value.step == START

    tell(story)


def test_every_wire_tells_what_is_known_of_a_frame() -> None:
    async def story(service: Service) -> None:
        service.marches.unsolved = {2: "too steep"}
        state = {name: field[None] for name, field in SENT.items()}
        rollout = await service.solver.roll_out(request(state=state))
        frames = [frame async for frame in rollout.frames]
        expected = [frame.checked(0) for frame in frames]
        assert [len(each) for each in expected] == [2, 2, 0, 1, 1, 1, 0, 1]

        async def again() -> AsyncGenerator[Frame, None]:
            for frame in frames:
                yield frame

        lines = [json.loads(line) async for line in Lines().frames(replace(rollout, frames=again()))]
        assert [{name: line[name] for name in KNOWN if name in line} for line in lines] == expected
        write = FrameWriter(rollout)
        messages = [pb.Frame.FromString(b"".join(write(frame))) for frame in frames]
        assert [
            {name: getattr(message, name) for name in KNOWN if message.HasField(name)} for message in messages
        ] == expected

    tell(story, Biased(1e-3))


async def settle() -> None:
    """Let everybody do what can be done without the test."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_who_leaves_takes_the_comparison_out_of_the_queue() -> None:
    async def story(service: Service) -> None:
        before = asyncio.all_tasks()
        service.marches.gate.clear()
        first = asyncio.create_task(service.frames())
        await service.marches.asked.wait()
        # the solver is busy with the first one
        second = asyncio.create_task(service.frames())
        while not service.queue.waiting:
            await asyncio.sleep(0)
        assert service.queue.waiting == BLOCK
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert service.queue.waiting == 0
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        service.marches.gate.set()
        await service.queue.drain()
        await settle()
        assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()

    tell(story)


def test_a_slow_reader_has_one_block_compared_ahead() -> None:
    async def story(service: Service) -> None:
        rollout = await service.solver.roll_out(request(steps=START + 100))
        assert service.marches.rows == [BLOCK]
        for _ in range(3):
            await anext(rollout.frames)
        while len(service.marches.rows) < 2:
            await asyncio.sleep(0)
        await settle()
        assert service.marches.rows == [BLOCK, BLOCK]
        await rollout.close()

    tell(story)


def test_the_solver_s_own_rollout_has_nothing_to_be_compared_with() -> None:
    async def story(service: Service) -> None:
        with pytest.raises(InvalidField, match="leave defects out") as fault:
            await service.frames(method="solver", defects=1)
        assert (fault.value.field, fault.value.rule) == ("defects", "method")
        assert len(await service.frames(method="solver", defects=0)) == 8

    tell(story)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"scheme": "my-own-v1"}, "approximates 'my-own-v1'"),
        ({"frame_interval": 2 * PROBLEM.frame_interval}, "steps by 0.1 s, the solver by 0.05 s"),
    ],
)
def test_a_version_that_the_solver_does_not_speak_of_is_not_compared(
    other: dict[str, Any], complaint: str
) -> None:
    async def story(service: Service) -> None:
        with pytest.raises(InvalidField, match=complaint) as fault:
            await service.frames()
        assert (fault.value.field, fault.value.rule) == ("defects", "model")
        assert len(await service.frames(defects=0)) == 8

    tell(story, **other)


def test_defects_are_those_of_the_numbers_that_leave() -> None:
    async def story(service: Service) -> None:
        before = SENT
        for frame in await service.frames(dtype="float32"):
            (stepped,) = islice(PROBLEM.frames(before, GRID, start=frame.step - 1), 1)
            # nothing but the rounding of frames to float32
            assert frame.defects[0] == pytest.approx(difference(plain(frame), stepped), rel=1e-6)
            assert 0 < frame.defects[0] < 1e-7
            before = {name: values.astype(np.float64) for name, values in plain(frame).items()}

    tell(story)


def test_who_stops_reading_leaves_no_comparison_behind() -> None:
    async def story(service: Service) -> None:
        before = asyncio.all_tasks()
        rollout = await service.solver.roll_out(request(steps=START + 100))
        service.marches.gate.clear()
        service.marches.asked.clear()
        for _ in range(3):
            await anext(rollout.frames)
        await service.marches.asked.wait()
        await rollout.close()
        service.marches.gate.set()
        await service.queue.drain()
        await settle()
        assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()

    tell(story)

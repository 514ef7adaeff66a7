"""Worker processes: loaded and warm before they are ready, killed, drained, and shared by fronts."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from model_store import Reference
from problems import EVOLUTION_PROBLEMS, Grid
from service.processes.zygote import Child, Zygote
from service.versions.served import ServedVersion
from service.workers.arena import Arena
from service.workers.batch_token import ComputationFailed
from service.workers.lane import Lane, lane_pair
from service.workers.process_worker import ProcessWorker
from service.workers.worker import Batch, Bucket, Solutions, WorkerLost
from service.workers.worker_process import ModelSpec

Story = Callable[[Coroutine[Any, Any, None]], None]
# see worker_factories.py, which the processes import
POISON, KILL = -666.0, -777.0
BUCKET = Bucket("darcy", Reference("doubles", 1), "tpfa-harmonic-v1", Grid((16, 16)), "float32")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def zygote(runner: asyncio.Runner) -> Iterator[Zygote]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        zygote = Zygote()
        runner.run(zygote.start())
    yield zygote
    runner.run(zygote.close(60))


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(2**24)
    yield arena
    arena.close()


class Supervised:
    """A model worker, and this end of its control socket."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.control = Lane(child.control, lambda message, _: self._heard.put_nowait(message), lambda: None)

    async def says(self) -> dict[str, Any]:
        return await self._heard.get()

    def serve(self, worker: ProcessWorker, arena: Arena) -> None:
        ours, theirs = lane_pair()
        with theirs:
            self.control.send({"lane": "front 0"}, [theirs.fileno(), arena.fd])
        worker.attach(ours)


@asynccontextmanager
async def model(zygote: Zygote, **spec: Any) -> AsyncIterator[Supervised]:
    supervised = Supervised(await zygote.fork("model", ModelSpec(**spec).model_dump(mode="json")))
    try:
        yield supervised
    finally:
        supervised.control.close()
        await supervised.child.wait()


def part(*values: float) -> Batch:
    fields = np.empty((len(values), 16, 16), np.float32)
    fields[:] = np.array(values)[:, None, None]
    return Batch(BUCKET, {"permeability": fields, "source": np.ones(len(values), np.float32)})


def test_a_specification_names_one_source() -> None:
    spec = ModelSpec(model="darcy@1", threads=2)
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    for bad in ({}, {"model": "darcy@1", "factory": "a:b"}, {"model": "darcy@1", "threads": 0}, {"spam": 1}):
        with pytest.raises(ValidationError):
            ModelSpec(**bad)


def test_a_published_version_answers_as_it_does_here(
    runner: asyncio.Runner,
    zygote: Zygote,
    arena: Arena,
    store_url: str,
    surrogate: Any,
    permeability: NDArray[np.float32],
) -> None:
    torch = pytest.importorskip("torch")
    source = np.array([1.0, 2.0, 0.5], np.float32)

    async def story() -> Solutions:
        async with model(
            zygote, store=store_url, model="darcy@2", device="cpu", max_batch=4, warm_up_seconds=60
        ) as supervised:
            said = await supervised.says()
            version = ServedVersion.model_validate(said["ready"])
            assert str(version) == "darcy@2"
            assert version.grids == ((32, 32), (32, 48))
            assert version.weights_bytes > 0
            assert {tuple(cost[:3]) for cost in said["costs"]} >= {(32, 32, 1), (32, 48, 1), (32, 32, 4)}
            assert all(cost[3] > 0 for cost in said["costs"])
            bucket = Bucket("darcy", version.reference, version.scheme, Grid((32, 32)), "float32")
            worker = ProcessWorker(arena)
            supervised.serve(worker, arena)
            answer = await worker.run([Batch(bucket, {"permeability": permeability, "source": source})])
            worker.close()
        return answer

    answer = runner.run(story())
    with torch.inference_mode():
        expected = surrogate(torch.from_numpy(permeability)[:, None], torch.from_numpy(source))
    assert np.allclose(answer.fields["pressure"], expected[:, 0].numpy(), rtol=1e-4, atol=1e-6)


def test_frames_of_a_published_version_come_in_blocks(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena, water_store: str, water: NDArray[np.float32]
) -> None:
    async def story() -> None:
        async with model(
            zygote, store=water_store, model="shallow_water@1", device="cpu", max_batch=2
        ) as supervised:
            version = ServedVersion.model_validate((await supervised.says())["ready"])
            assert (version.history, version.frames, version.walls) == (1, 4, "outflow")
            bucket = Bucket(
                "shallow_water",
                version.reference,
                version.scheme,
                Grid((16, 24), version.extent, EVOLUTION_PROBLEMS["shallow_water"].grid.origin),
                "float32",
                version.walls,
                "advance",
                version.frames,
            )
            worker = ProcessWorker(arena)
            supervised.serve(worker, arena)
            state = {name: water[None, channel] for channel, name in enumerate(("h", "hu", "hv"))}
            frames = dict((await worker.run([Batch(bucket, state), Batch(bucket, state)])).fields)
            invariants = frames.pop("invariants")
            for row, number in np.ndindex(2, 4):
                frame = {name: values[row, number].astype(float) for name, values in frames.items()}
                expected = EVOLUTION_PROBLEMS["shallow_water"].invariants(frame, bucket.grid)
                assert invariants[row, number] == pytest.approx(list(expected.values()), rel=1e-12)
            for values in frames.values():
                assert values.shape == (2, 4, 16, 24)
                assert np.isfinite(values).all()
                assert np.allclose(values[0], values[1], rtol=1e-5, atol=1e-6)
            worker.close()

    runner.run(story())


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"model": "nowhere@1"}, "expected one of the models"),
        ({"model": "darcy@999"}, "expected a version among"),
        ({"model": "darcy@1", "store": "ftp:/nowhere"}, "ftp"),
        ({"factory": "worker_factories:broken"}, "FileNotFoundError: no such weights"),
        ({"factory": "worker_factories:nothing"}, "nothing"),
        ({"factory": "worker_factories:log_format"}, "logs by TextFormatter"),
        ({"factory": "worker_factories:log_format", "logs": {"format": "json"}}, "logs by JsonFormatter"),
        ({"factory": "worker_factories:infinite"}, r"not finite .* leave it out"),
        ({"factory": "worker_factories:doubles", "scan_backend": "spam"}, "spam"),
        ({"model": "darcy@1", "device": "cuda"}, "--device cpu"),
    ],
)
def test_what_cannot_be_served_says_why(
    runner: asyncio.Runner, zygote: Zygote, spec: dict[str, Any], why: str
) -> None:
    if spec.get("device") == "cuda":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")

    async def story() -> None:
        async with model(zygote, **spec) as supervised:
            said = await supervised.says()
            assert await supervised.child.wait() == 1
        assert list(said) == ["failed"]
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(said["failed"])

    runner.run(story())


def test_a_worker_that_is_killed_loses_its_batch_and_the_next_one_takes_over(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena
) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena, "doubles@1")
        for _ in range(2):
            async with model(zygote, factory="worker_factories:doubles") as supervised:
                await supervised.says()
                supervised.serve(worker, arena)
                answer = await worker.run([part(1), part(2, 3)])
                assert answer.fields["pressure"][:, 0, 0].tolist() == [2, 4, 6]
                with pytest.raises(ComputationFailed, match="poisoned"):
                    await worker.run([part(POISON)])
                tasks = [asyncio.create_task(worker.run([part(value)])) for value in (1, KILL, 3)]
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                assert isinstance(outcomes[0], Solutions)
                assert isinstance(outcomes[1], WorkerLost)
                assert isinstance(outcomes[2], WorkerLost)
                assert await supervised.child.wait() == -9
                assert not worker.available
        worker.close()
        del answer, tasks, outcomes
        await asyncio.sleep(0)
        assert arena.used == 0

    runner.run(story())


@pytest.mark.parametrize("how", ["drain", "terminate", "hang up"])
def test_a_drained_worker_answers_what_it_has_and_ends_well(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena, tmp_path: Path, how: str
) -> None:
    trap = tmp_path / "trap"
    os.mkfifo(trap)
    arguments = {"trap": str(trap)}

    async def story() -> None:
        worker = ProcessWorker(arena)
        async with model(zygote, factory="worker_factories:doubles", arguments=arguments) as supervised:
            await supervised.says()
            supervised.serve(worker, arena)
            tasks = [asyncio.create_task(worker.run([part(value)])) for value in (5, 0, 7)]
            await tasks[0]
            # it is in the trap now, and one more waits
            if how == "drain":
                supervised.control.send({"drain": True})
            elif how == "terminate":
                supervised.child.terminate()
            else:
                supervised.control.finish()
            assert await asyncio.to_thread(trap.read_text) == "busy"
            assert [float((await task).fields["pressure"][0, 0, 0]) for task in tasks] == [10, 0, 14]
            assert await supervised.child.wait() == 0
        worker.close()

    runner.run(story())


def test_fronts_share_a_worker_and_one_that_dies_leaves_it_to_the_others(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena
) -> None:
    async def story() -> None:
        mine, other = Arena(2**20), ProcessWorker(arena)
        dying = ProcessWorker(mine)
        async with model(zygote, factory="worker_factories:doubles") as supervised:
            await supervised.says()
            supervised.serve(dying, mine)
            supervised.serve(other, arena)
            answers = await asyncio.gather(dying.run([part(1)]), other.run([part(2)]))
            assert [answer.fields["pressure"][0, 0, 0] for answer in answers] == [2, 4]
            pending = asyncio.create_task(dying.run([part(3)]))
            await asyncio.sleep(0)
            assert dying._link is not None
            # what the end of its process does
            dying._link.lane.close()
            mine.close()
            assert (await other.run([part(4)])).fields["pressure"][0, 0, 0] == 8
            pending.cancel()
            other.close()

    runner.run(story())


def test_nothing_of_a_front_stays_behind_in_the_worker(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena
) -> None:
    def held(pid: int) -> tuple[int, int]:
        """Open files, and mapped arenas."""
        maps = Path(f"/proc/{pid}/maps").read_text("ascii")
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), maps.count("mno-arena")

    async def story() -> None:
        staying = ProcessWorker(arena)
        async with model(zygote, factory="worker_factories:doubles") as supervised:
            await supervised.says()
            supervised.serve(staying, arena)
            await staying.run([part(1)])
            before = held(supervised.child.pid)
            for _ in range(20):
                other = Arena(2**20)
                worker = ProcessWorker(other)
                supervised.serve(worker, other)
                await worker.run([part(2)])
                worker.close()
                other.close()
            # each answer is a turn, in which the worker hears of those who left
            for _ in range(40):
                await staying.run([part(1)])
            assert held(supervised.child.pid) == before
            staying.close()

    runner.run(story())


def test_signals_that_stop_a_whole_group_do_not_stop_a_worker(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena
) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena)
        async with model(zygote, factory="worker_factories:doubles") as supervised:
            await supervised.says()
            supervised.serve(worker, arena)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(supervised.child.pid, number)
                os.kill(zygote.pid, number)
                assert (await worker.run([part(4)])).fields["pressure"][0, 0, 0] == 8
            worker.close()

    runner.run(story())


def test_orders_that_mean_nothing_change_nothing(
    runner: asyncio.Runner, zygote: Zygote, arena: Arena
) -> None:
    async def story() -> None:
        worker = ProcessWorker(arena)
        async with model(zygote, factory="worker_factories:doubles") as supervised:
            await supervised.says()
            supervised.control.send({"dance": True})
            supervised.control.send({"lane": "front 0"}, [arena.fd])
            supervised.control.send({"lane": "front 0", "to": "spam"}, [arena.fd, arena.fd])
            # no socket
            supervised.control.send({"lane": "front 0"}, [arena.fd, arena.fd])
            supervised.serve(worker, arena)
            assert (await worker.run([part(4)])).fields["pressure"][0, 0, 0] == 8
            worker.close()

    runner.run(story())

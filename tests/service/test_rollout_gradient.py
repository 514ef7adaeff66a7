"""Gradients through rollouts: exact ones of a drift, finite differences of a network, and what they hold."""

import asyncio
import functools
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from loop_worker import LoopWorker
from numpy.typing import NDArray
from torch import Tensor

from model_store import Card, LoadedVersion, Reference, open_store
from operators import EvolutionOperator, EvolutionSurrogate, surrogate_from_config
from operators.backward_memory import held_for_backward
from operators.diffusion_reaction_mno import DiffusionReactionMnoConfig
from service.batching.batcher import Batcher, BatchRules
from service.errors import (
    DeadlineExceeded,
    InvalidField,
    NotAvailableYet,
    NotCertifiable,
    Overloaded,
    ServiceFault,
    TooLarge,
    UnknownProblem,
)
from service.gradient import Derivative
from service.rollout import RolloutRequest
from service.rollout_question import RolloutVjpRequest
from service.settings import Limits
from service.solver import Queues, Solver
from service.ticket import Ticket
from service.versions.local import local_models
from service.versions.routing import Route
from service.workers.block_gradient import pull_back
from service.workers.compute import Surrogates
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import Batch, Solutions, ThreadWorker, joined

NAMES = ("h", "hu", "hv")
LIMITS = Limits(grid_side=64, batch=8, gradient_steps=24)
RULES = BatchRules(max_batch=8, queue_seconds=100.0)
EXTENT = (5.0, 5.0)
CPU = torch.device("cpu")


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is awaited."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


@dataclass
class Watched:
    """Computes batches, and remembers what they were."""

    surrogates: Surrogates
    batches: list[Batch] = field(default_factory=list)

    def __call__(self, batch: Batch) -> Solutions:
        fields = {name: values.copy() for name, values in batch.fields.items()}
        self.batches.append(Batch(batch.bucket, fields))
        return self.surrogates(batch)

    def of(self, task: str) -> list[Batch]:
        return [batch for batch in self.batches if batch.bucket.task == task]


@dataclass
class Desk:
    """Asks a solver in this process."""

    solver: Any
    watched: Watched
    queue: Any

    async def gradient(self, state: NDArray[Any], cotangent: Any, steps: int, **options: Any) -> Derivative:
        return await self.solver.differentiate(request(state, cotangent, steps, **options))


def request(state: NDArray[Any], cotangent: Any, steps: int, **options: Any) -> RolloutVjpRequest:
    given = dict(zip(NAMES, state, strict=True))
    cotangents = cotangent if isinstance(cotangent, dict) else dict(zip(NAMES, cotangent, strict=True))
    return RolloutVjpRequest(
        **{"problem": "shallow_water", **options}, state=given, cotangents=cotangents, steps=steps
    )


@pytest.fixture
def desk_of(serve_with: Callable[..., Any]) -> Callable[..., Desk]:
    def desk(versions: tuple[LoadedVersion, ...], limits: Limits = LIMITS) -> Desk:
        watched = Watched(Surrogates(versions, CPU))
        worker = ThreadWorker(watched, lambda: torch.set_num_threads(1))
        names = {version.reference.name: Route(name=version.reference.name, main=1) for version in versions}
        served = serve_with(worker, versions, limits, RULES, names)
        return Desk(served.solver, watched, served.surrogates)

    return desk


@pytest.fixture
def drifting(desk_of: Callable[..., Desk], evolution_versions: tuple[LoadedVersion, ...]) -> Desk:
    return desk_of(evolution_versions)


@pytest.fixture
def network(water_store: str) -> LoadedVersion:
    """A network on shallow water that has learnt nothing."""
    return open_store(water_store).load("shallow_water", 1)


def cotangents(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(3, 16, 24)).astype(np.float32)


@in_a_loop
async def test_a_drift_is_gone_back_exactly(drifting: Desk, water: NDArray[np.float32]) -> None:
    weights = cotangents()
    async with drifting.solver as solver:
        # within a block, to its end, beyond it, and from a step that is not the first
        for steps, start in ((3, 0), (4, 0), (6, 0), (11, 2)):
            for channel, name in enumerate(NAMES):
                asked = request(water, weights, steps, start_step=start, wrt=name)
                found = await solver.differentiate(asked)
                expected = np.roll(weights[channel], start - steps, axis=-1)
                assert np.array_equal(found.values, expected)
                assert found.name == name
        default = await solver.differentiate(request(water, weights, 6))
        # depths are positive and have a logarithm
        logarithm = await solver.differentiate(request(water, weights, 6, wrt="log_h", dtype="float64"))
    assert (default.name, default.model, default.method) == ("h", "shallow_water@1", "surrogate")
    assert (default.errors, default.certified, default.operator) == (None, False, "hllc-muscl-v1")
    assert default.values.dtype == np.float32
    assert logarithm.values.dtype == np.float64
    assert np.array_equal(logarithm.values, default.values * water[0].astype(np.float64))


@in_a_loop
async def test_several_cotangents_and_fields_without(drifting: Desk, water: NDArray[np.float32]) -> None:
    several = np.stack([cotangents(seed)[1] for seed in range(3)])
    async with drifting.solver as solver:
        found = await solver.differentiate(request(water, {"hu": several}, 5, wrt="hu"))
        one = await solver.differentiate(request(water, {"hu": several[:1]}, 5, wrt="hu"))
        # the depth of the drift depends on the depth alone
        nothing = await solver.differentiate(request(water, {"hu": several}, 5))
        batch = np.stack([water, 2 * water], axis=1)
        rows = await solver.differentiate(request(batch, {"hu": several[:2]}, 5, wrt="hu"))
        both = await solver.differentiate(request(batch, {"hu": several[None, :2]}, 5, wrt="hu"))
    assert np.array_equal(found.values, np.roll(several, -5, axis=-1))
    assert one.values.shape == (1, 16, 24)
    assert nothing.values.shape == several.shape
    assert not nothing.values.any()
    assert np.array_equal(rows.values, np.roll(several[:2], -5, axis=-1))
    assert np.array_equal(both.values[0], rows.values)
    assert rows.certified_rows == (False, False)


@in_a_loop
async def test_it_is_taken_at_the_frames_that_are_served(
    desk_of: Callable[..., Desk], network: LoadedVersion, water: NDArray[np.float32]
) -> None:
    desk = desk_of((network,))
    async with desk.solver as solver:
        found = await desk.gradient(water, cotangents(), 10)
        rollout = await solver.roll_out(
            RolloutRequest("shallow_water", dict(zip(NAMES, water, strict=True)), 10)
        )
        frames = [np.stack([frame.fields[name][0] for name in NAMES]) async for frame in rollout.frames]
    back = desk.watched.of("vjp")
    assert [batch.bucket.frames for batch in back] == [2, 4, 4]
    states = [np.stack([batch.fields[name][0] for name in NAMES]) for batch in back]
    assert np.array_equal(states[0], frames[7])
    assert np.array_equal(states[1], frames[3])
    assert np.array_equal(states[2], water)
    # what is differentiated is what was served: its own scheme differs from the compiled one by rounding
    surrogate: Any = network.surrogate
    again = surrogate(torch.from_numpy(states[0])[None, None].requires_grad_(), EXTENT, [1])
    assert np.allclose(again[0, 0].detach().numpy(), frames[9], rtol=1e-5, atol=1e-6)
    assert found.in_distribution == rollout.in_distribution


def product(
    surrogate: EvolutionSurrogate, state: Any, weights: Any, steps: int, extent: tuple[float, float]
) -> float:
    """Of the weights and the frame of a step, in float64, computed without the service."""
    frames: list[Any] = []
    with torch.no_grad():
        blocks = surrogate.blocks(torch.from_numpy(state)[None, None], extent)
        while len(frames) < steps:
            frames.extend(next(blocks)[0].numpy())
    return float((frames[steps - 1] * weights).sum())


def double(surrogate: Any) -> EvolutionSurrogate:
    exact = EvolutionSurrogate(
        surrogate_from_config(surrogate.operator.config).operator, len(surrogate.shift)
    )
    exact.load_state_dict(surrogate.state_dict())
    return exact.double()


def reaction(water_card: Card) -> LoadedVersion:
    torch.manual_seed(3)
    config = DiffusionReactionMnoConfig(
        channels=8, inner_channels=8, states=2, rank=1, blocks=1, context=4, hidden=4, frames=4
    )
    known = {"problem": "diffusion_reaction", "operator": config, "extent": (2.0, 2.0), "walls": "zero_flux"}
    card = water_card.model_copy(
        update={**known, "grids": ((16, 24),), "training_hull": {}, "calibration": {}, "frame_interval": 0.05}
    )
    return LoadedVersion(Reference("diffusion_reaction", 1), card, surrogate_from_config(config).eval())


@pytest.mark.parametrize("problem", ["shallow_water", "diffusion_reaction"])
@in_a_loop
async def test_finite_differences_of_the_rollout_agree(
    desk_of: Callable[..., Desk],
    network: LoadedVersion,
    water_card: Card,
    problem: str,
) -> None:
    loaded = network if problem == "shallow_water" else reaction(water_card)
    names = NAMES if problem == "shallow_water" else ("u", "v")
    rng = np.random.default_rng(1)
    # no number twice: where two slopes are alike the scheme's limiters have kinks
    state = (
        rng.uniform(-0.1, 0.1, (3, 16, 24))[: len(names)]
        + np.array([1.3, 0.1, 0.0])[: len(names), None, None]
    )
    state, weights = state.astype(np.float32), rng.normal(size=state.shape).astype(np.float32)
    extent, exact = loaded.card.extent, double(loaded.surrogate)
    desk = desk_of((loaded,))
    async with desk.solver as solver:
        given = {
            "state": dict(zip(names, state, strict=True)),
            "cotangents": dict(zip(names, weights, strict=True)),
        }
        found = [
            (await solver.differentiate(RolloutVjpRequest(problem, **given, steps=10, wrt=name))).values
            for name in names
        ]
    # in float64, block by block
    states, gradient = [torch.from_numpy(state).double()[None]], torch.from_numpy(weights).double()[None]
    with torch.no_grad():
        for _ in range(2):
            states.append(exact(states[-1][:, None], extent)[:, -1])
    for before, frame in zip(reversed(states), (2, 4, 4), strict=True):
        gradient = pull_back(exact, before, gradient, extent, frame)
    expected = gradient[0].numpy()
    h = 1e-7
    for _ in range(3):
        direction = rng.normal(size=state.shape)
        ahead, behind = (
            product(exact, state.astype(np.float64) + sign * h * direction, weights, 10, extent)
            for sign in (1, -1)
        )
        scale = np.linalg.norm(expected) * np.linalg.norm(direction)
        assert (expected * direction).sum() == pytest.approx((ahead - behind) / (2 * h), abs=1e-6 * scale)
    # what is served is computed in float32
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)


def test_memory_does_not_grow_with_the_steps(network: LoadedVersion, water: NDArray[np.float32]) -> None:
    surrogate: Any = network.surrogate.eval().requires_grad_(False)
    state, weights = torch.from_numpy(water)[None], torch.from_numpy(cotangents())[None]

    def at_once(blocks: int) -> object:
        now = state.clone().requires_grad_()
        for _ in range(blocks):
            now = surrogate(now[:, None], EXTENT)[:, -1]
        return now

    held = [held_for_backward(at_once, blocks) for blocks in (1, 2, 4)]
    # block by block, nothing is kept but the state before each of them
    assert held[1] > 1.7 * held[0]
    assert held[2] > 3.4 * held[0]
    states, gradient = [state], weights
    with torch.no_grad():
        for _ in range(3):
            states.append(surrogate(states[-1][:, None], EXTENT)[:, -1])
    for one in reversed(states):
        assert held_for_backward(pull_back, surrogate, one, gradient, EXTENT, 4) == 0
        gradient = pull_back(surrogate, one, gradient, EXTENT, 4)
    now = state.clone().requires_grad_()
    after = now
    for _ in range(4):
        after = surrogate(after[:, None], EXTENT)[:, -1]
    (expected,) = torch.autograd.grad(after, now, weights)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


BAD: list[tuple[dict[str, Any], type[ServiceFault], str]] = [
    ({"cotangents": {}}, InvalidField, "expected some of h, hu, hv, got none"),
    ({"cotangents": {"depth": np.ones((16, 24))}}, InvalidField, "cotangent of 'depth'"),
    ({"cotangents": {"h": np.ones((16, 23))}}, InvalidField, r"cotangent\.h: expected shape \(16, 24\)"),
    ({"cotangents": {"h": np.full((16, 24), np.nan)}}, InvalidField, "cotangent.h"),
    ({"cotangents": {"h": np.ones((2, 16, 24)), "hu": np.ones((16, 24))}}, InvalidField, "one shape"),
    ({"cotangents": {"h": np.ones((9, 16, 24))}}, TooLarge, "at most 8"),
    ({"cotangents": {"h": np.ones((6, 16, 24))}}, InvalidField, "at most 24, got 5 for 6 cotangents"),
    ({"steps": 0}, InvalidField, "more than start_step = 0, got 0"),
    (
        {"state": dict.fromkeys(NAMES, np.ones((16, 24))), "steps": 3, "start_step": 3},
        InvalidField,
        "start_step = 3",
    ),
    ({"steps": 25}, InvalidField, "at most 24, got 25 for 1 cotangent;"),
    ({"wrt": "log_hu"}, InvalidField, "wrt: expected h or hu or hv or log_h, got 'log_hu'"),
    ({"walls": "periodic"}, InvalidField, "knows walls 'outflow' only; choose another model$"),
    ({"walls": "brick"}, InvalidField, "walls: expected"),
    ({"model": "short"}, InvalidField, "starts from 3 frames.*; choose another model$"),
    (
        {"state": {"h": np.full((16, 24), 1e300)}},
        InvalidField,
        "does not fit float32; scale the input$",
    ),
    (
        {"method": "adjoint"},
        NotAvailableYet,
        "no adjoint of the reference solver of shallow_water.*ask for surrogate",
    ),
    ({"method": "solver"}, NotAvailableYet, "no adjoint"),
    ({"tolerance": 1e-3}, NotCertifiable, "no adjoint.*leave it out"),
    ({"tolerance": -1.0}, InvalidField, "tolerance"),
    ({"problem": "heat"}, UnknownProblem, "heat"),
    ({"problem": "darcy"}, InvalidField, "steady"),
    ({"state": {"h": np.ones((16, 24)), "hw": np.ones((16, 24))}}, InvalidField, "'hw' is no field"),
    ({"state": {"h": np.ones((16, 24))}, "start_step": 1}, InvalidField, "needs hu and hv"),
    (
        {"state": {"h": np.ones((9, 9))}, "cotangents": {"h": np.ones((9, 9))}},
        InvalidField,
        "tested on grids .* choose another model$",
    ),
]


@pytest.mark.parametrize(("changes", "fault", "why"), BAD)
@in_a_loop
async def test_what_cannot_be_differentiated_is_refused(
    drifting: Desk, changes: dict[str, Any], fault: type[ServiceFault], why: str
) -> None:
    good = {
        "problem": "shallow_water",
        "state": {"h": np.ones((16, 24))},
        "cotangents": {"h": np.ones((16, 24))},
    }
    async with drifting.solver as solver:
        await solver.differentiate(RolloutVjpRequest(**good, steps=5))
        with pytest.raises(fault, match=why):
            await solver.differentiate(RolloutVjpRequest(**{"steps": 5, **good, **changes}))
    # nothing was computed for it but, at most, the first block of its rollout
    assert len(drifting.watched.of("vjp")) == 2


class Growing(EvolutionOperator):
    """Each frame is a hundred million times the one before."""

    history = 1
    frames = 4
    fields = 3

    def forward(
        self,
        history: Tensor,
        extent: tuple[float, float],  # noqa: ARG002
        chosen: Sequence[int] | None = None,
    ) -> Tensor:
        numbers = range(self.frames) if chosen is None else chosen
        return torch.stack([history[:, -1] * 1e8 ** (number + 1) for number in numbers], dim=1)


@in_a_loop
async def test_a_rollout_that_diverges_has_no_gradient(
    desk_of: Callable[..., Desk], water_card: Card, water: NDArray[np.float32]
) -> None:
    surrogate = EvolutionSurrogate(Growing(), channels=3)
    desk = desk_of((LoadedVersion(Reference("shallow_water", 1), water_card, surrogate),))
    weights = cotangents()
    async with desk.solver as solver:
        found = await desk.gradient(water, weights, 4)
        assert np.allclose(found.values, 1e32 * weights[0])
        done = len(desk.watched.of("vjp"))
        asked = dict(zip(NAMES, water, strict=True))
        rollout = await solver.roll_out(RolloutRequest("shallow_water", asked, 6))
        with pytest.raises(InvalidField) as diverged:
            [frame async for frame in rollout.frames]
        with pytest.raises(InvalidField) as refused:
            await desk.gradient(water, weights, 6)
        assert len(desk.watched.of("vjp")) == done
        # frames that are numbers may have a derivative that is none
        with pytest.raises(InvalidField, match=r"gradient of h is not finite.*fewer steps") as infinite:
            await desk.gradient(water, 1e8 * weights, 4)
        # a cotangent is brought near 1 first, where that takes a large factor
        large = await desk.gradient(water, 1e12 * weights, 4, dtype="float64")
        assert np.allclose(large.values, 1e44 * weights[0].astype(np.float64))
    assert (refused.value.rule, infinite.value.rule) == ("diverged", "diverged")
    # but for the way out: the reference solver gives no gradient
    assert str(diverged.value).endswith(", another model, or method=solver")
    assert str(refused.value) == str(diverged.value).removesuffix(", another model, or method=solver") + (
        ", or another model"
    )


@in_a_loop
async def test_what_cannot_be_had_in_time_is_refused_at_once(
    drifting: Desk, water: NDArray[np.float32]
) -> None:
    weights = cotangents()
    async with drifting.solver as solver:
        await solver.differentiate(request(water, weights, 12))
        (there,) = {batch.bucket for batch in drifting.watched.of("advance")}
        (back,) = {batch.bucket for batch in drifting.watched.of("vjp")}
        done = len(drifting.watched.of("vjp"))
        for bucket in (there, back):
            for _ in range(100):
                drifting.queue.learn(bucket, 1, 3600.0)
        asked = request(water, weights, 12)
        ticket = Ticket(deadline=asked.received + 600.0)
        with pytest.raises(DeadlineExceeded, match=r"3 blocks of 4 steps.*ask for fewer steps"):
            await solver.differentiate(request(water, weights, 12, ticket=ticket, received=asked.received))
        # whoever can wait gets it
        await solver.differentiate(request(water, weights, 12))
    assert len(drifting.watched.of("vjp")) == 2 * done


class Held(LoopWorker):
    """Computes at once, but gradients when the gate is open."""

    def __init__(self, surrogates: Surrogates) -> None:
        self._surrogates = surrogates
        self.gate, self.busy = asyncio.Event(), asyncio.Event()
        self.computed: list[str] = []

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        if batch.bucket.task == "vjp":
            self.busy.set()
            await self.gate.wait()
        self.computed.append(batch.bucket.task)
        return self._surrogates(batch)


@in_a_loop
async def test_the_states_of_all_gradients_are_bounded(
    drift: EvolutionSurrogate, water_card: Card, water: NDArray[np.float32]
) -> None:
    versions = [LoadedVersion(Reference(name, 1), water_card, drift) for name in ("shallow_water", "other")]
    workers = [Held(Surrogates([version], CPU)) for version in versions]
    queues = {
        str(version.reference): Batcher(worker, RULES)
        for version, worker in zip(versions, workers, strict=True)
    }
    names = {version.reference.name: Route(name=version.reference.name, main=1) for version in versions}
    models = local_models(versions, names, lambda version: queues[str(version.reference)])
    others = Queues(
        *(Batcher(ThreadWorker(each), RULES) for each in (solve_reference, advance_reference, bound_errors))
    )
    # less than what the states of either take: alone, each gets what the limits on one request let through
    async with Solver(models, others, LIMITS.model_copy(update={"inflight_bytes": 1})) as solver:
        first = asyncio.create_task(solver.differentiate(request(water, cotangents(), 16)))
        await workers[0].busy.wait()
        with pytest.raises(Overloaded, match="states of other derivatives"):
            await solver.differentiate(request(water, cotangents(), 16, model="other"))
        for worker in workers:
            worker.gate.set()
        found = await first
        # what was held is given back
        again = await solver.differentiate(request(water, cotangents(), 16, model="other"))
    assert np.array_equal(found.values, again.values)


@pytest.fixture
def held(
    serve_with: Callable[..., Any], evolution_versions: tuple[LoadedVersion, ...]
) -> Callable[[], tuple[Held, Solver]]:
    """A gradient's way back is held; whatever one gradient kept would be in the way of the next."""

    def start() -> tuple[Held, Solver]:
        worker = Held(Surrogates(evolution_versions, CPU))
        limits = LIMITS.model_copy(update={"inflight_bytes": 1})
        return worker, serve_with(worker, evolution_versions, limits, RULES).solver

    return start


@in_a_loop
async def test_what_nobody_waits_for_any_more_is_not_computed(
    held: Callable[[], tuple[Held, Solver]], water: NDArray[np.float32]
) -> None:
    worker, desk = held()
    async with desk as solver:
        leaving = asyncio.create_task(solver.differentiate(request(water, cotangents(), 16)))
        await worker.busy.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        worker.gate.set()
        await solver.differentiate(request(water, cotangents(), 16))
    # of the first one's four blocks on the way back, the one that was under way
    assert worker.computed == ["advance"] * 4 + ["vjp"] + ["advance"] * 4 + ["vjp"] * 4


@in_a_loop
async def test_a_deadline_that_passes_on_the_way_back_gives_all_back(
    held: Callable[[], tuple[Held, Solver]], water: NDArray[np.float32]
) -> None:
    worker, desk = held()
    async with desk as solver:
        asked = request(water, cotangents(), 16)
        late = replace(asked, ticket=Ticket(deadline=asked.received + 2.0))
        with pytest.raises(DeadlineExceeded, match="ask for fewer steps"):
            await solver.differentiate(late)
        assert worker.busy.is_set()
        worker.gate.set()
        await solver.differentiate(request(water, cotangents(), 16))


@in_a_loop
async def test_the_way_back_keeps_one_block_at_a_time(
    drifting: Desk, water: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that blocks come in is others' as soon as the next one has been asked for."""
    given: list[weakref.ref[NDArray[Any]]] = []
    alive: list[int] = []
    compute = drifting.watched.surrogates

    def watched(batch: Batch) -> Solutions:
        if batch.bucket.task == "vjp":
            alive.append(sum(each() is not None for each in given))
        solutions = compute(batch)
        if batch.bucket.task == "vjp":
            own = {name: values.copy() for name, values in solutions.fields.items()}
            given.extend(map(weakref.ref, own.values()))
            solutions = solutions._replace(fields=own)
        return solutions

    monkeypatch.setattr(drifting.watched, "surrogates", watched)
    async with drifting.solver as solver:
        await solver.differentiate(request(water, cotangents(), 20))
    # gradients of three fields
    assert len(given) == 5 * 3
    assert alive[0] == 0
    assert max(alive) <= 3

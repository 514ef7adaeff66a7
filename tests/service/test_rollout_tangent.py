"""Tangents through rollouts: exact ones of a drift, finite differences of a network, and what they hold."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store import Card, LoadedVersion, Reference, open_store
from operators import EvolutionSurrogate, surrogate_from_config
from operators.diffusion_reaction_mno import DiffusionReactionMnoConfig
from service.batching.batcher import BatchRules
from service.errors import (
    DeadlineExceeded,
    InvalidField,
    NotAvailableYet,
    NotCertifiable,
    ServiceFault,
    TooLarge,
    UnknownProblem,
    WorkerLost,
)
from service.gradient import Derivative
from service.rollout_question import RolloutJvpRequest, RolloutVjpRequest
from service.settings import Limits
from service.ticket import Ticket
from service.versions.routing import Route
from service.workers.compute import Surrogates
from service.workers.worker import Batch, Solutions, ThreadWorker
from service.workers.worker import WorkerLost as Died

NAMES = ("h", "hu", "hv")
SHAPE = (3, 16, 24)
LIMITS = Limits(grid_side=64, batch=8, gradient_steps=24)
RULES = BatchRules(max_batch=8, queue_seconds=100.0)
CPU = torch.device("cpu")


class Desk:
    """Asks a solver in this process, and remembers what was computed."""

    def __init__(self, serve_with: Callable[..., Any], versions: tuple[LoadedVersion, ...]) -> None:
        self.batches: list[Batch] = []
        # tasks during which the worker dies, again and again
        self.fatal: tuple[str, ...] = ()
        self._surrogates = Surrogates(versions, CPU)
        worker = ThreadWorker(self._compute, lambda: torch.set_num_threads(1))
        names = {version.reference.name: Route(name=version.reference.name, main=1) for version in versions}
        self._serve = lambda: serve_with(worker, versions, LIMITS, RULES, names)

    def _compute(self, batch: Batch) -> Solutions:
        self.batches.append(batch)
        # the first block of a rollout was computed when its derivative begins
        if batch.bucket.task in self.fatal and len(self.batches) > 1:
            raise Died("it died")
        return self._surrogates(batch)

    def ask(self, *requests: RolloutJvpRequest | RolloutVjpRequest) -> list[Derivative]:
        async def asked() -> list[Derivative]:
            async with self._serve().solver as solver:
                return [await solver.differentiate(request) for request in requests]

        return asyncio.run(asked())


def named(fields: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return dict(zip(NAMES, fields, strict=True))


def request(state: NDArray[Any], tangents: Any, steps: int, **options: Any) -> RolloutJvpRequest:
    given = tangents if isinstance(tangents, dict) else named(tangents)
    return RolloutJvpRequest(
        **{"problem": "shallow_water", "state": named(state), "steps": steps, **options}, tangents=given
    )


@pytest.fixture
def drifting(serve_with: Callable[..., Any], evolution_versions: tuple[LoadedVersion, ...]) -> Desk:
    return Desk(serve_with, evolution_versions)


@pytest.fixture
def network(water_store: str) -> LoadedVersion:
    """A network on shallow water that has learnt nothing."""
    return open_store(water_store).load("shallow_water", 1)


def directions(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def test_a_tangent_drifts_with_the_state(drifting: Desk, water: NDArray[np.float32]) -> None:
    moved = directions()
    spans = ((3, 0), (4, 0), (6, 0), (11, 2))
    answers = drifting.ask(*(request(water, moved, steps, start_step=start) for steps, start in spans))
    for (steps, start), found in zip(spans, answers, strict=True):
        assert np.array_equal(found.values, np.roll(moved, steps - start, axis=-1))
        assert (found.name, found.steps, found.values.dtype) == ("h,hu,hv", (steps,), np.float32)
    assert (found.model, found.method, found.operator) == ("shallow_water@1", "surrogate", "hllc-muscl-v1")
    assert (found.errors, found.certified, found.in_distribution) == (None, False, (True,))


@pytest.mark.parametrize(("every", "start"), [(1, 0), (2, 1), (3, 0), (4, 0), (5, 2), (11, 0)])
def test_frames_that_are_asked_for_have_tangents(
    drifting: Desk, water: NDArray[np.float32], every: int, start: int
) -> None:
    moved = directions()
    (found,) = drifting.ask(request(water, moved, 11, every=every, start_step=start))
    steps = [step for step in range(start + 1, 12) if step % every == 0]
    assert found.steps == tuple(steps)
    assert np.array_equal(found.values, [np.roll(moved, step - start, axis=-1) for step in steps])


def test_several_tangents_and_fields_without(drifting: Desk, water: NDArray[np.float32]) -> None:
    several = np.stack([directions(seed)[1] for seed in range(3)])
    batch = np.stack([water, 2 * water], axis=1)
    found, one, framed, rows, both = drifting.ask(
        request(water, {"hu": several}, 5),
        request(water, {"hu": several[:1]}, 5),
        request(water, {"hu": several}, 5, every=5),
        request(batch, {"hu": several[:2]}, 5),
        request(batch, {"hu": several[None, :2]}, 5, every=2),
    )
    expected = np.zeros((3, *SHAPE), np.float32)
    expected[:, 1] = np.roll(several, 5, axis=-1)
    assert np.array_equal(found.values, expected)
    assert np.array_equal(one.values, expected[:1])
    assert np.array_equal(framed.values, expected[:, None])
    assert np.array_equal(rows.values, expected[:2])
    assert rows.certified_rows == (False, False)
    # directions come first, then samples, then steps
    assert both.values.shape == (1, 2, 2, *SHAPE)
    assert np.array_equal(both.values[0, :, 1, 1], np.roll(several[:2], 4, axis=-1))


def test_of_a_logarithm(drifting: Desk, water: NDArray[np.float32]) -> None:
    moved = directions()
    logarithm, plain = drifting.ask(
        request(water, moved, 5, wrt="log_h", dtype="float64"),
        request(water, np.concatenate([(moved[:1] * water[:1]), moved[1:]]), 5, wrt="h"),
    )
    assert logarithm.values.dtype == np.float64
    np.testing.assert_allclose(logarithm.values, plain.values, rtol=1e-6)


def test_it_marches_beside_the_state(
    serve_with: Callable[..., Any], network: LoadedVersion, water: NDArray[np.float32]
) -> None:
    desk = Desk(serve_with, (network,))
    desk.ask(request(water, directions(), 10, every=3))
    forth = [batch for batch in desk.batches if batch.bucket.task == "jvp"]
    # the frames that are asked for, and the ends of blocks of four
    assert [batch.bucket.chosen for batch in forth] == [(3, 4), (2, 4), (1, 2)]
    assert len([batch for batch in desk.batches if batch.bucket.task == "advance"]) == 3


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


def frames(
    surrogate: EvolutionSurrogate, state: NDArray[np.float64], extent: tuple[float, float]
) -> NDArray[np.float64]:
    """The first twelve frames, in float64, without the service."""
    with torch.no_grad():
        blocks = surrogate.blocks(torch.from_numpy(state)[None, None], extent)
        return np.concatenate([next(blocks)[0].numpy() for _ in range(3)])


@pytest.mark.parametrize("problem", ["shallow_water", "diffusion_reaction"])
def test_it_agrees_with_finite_differences_and_belongs_to_the_gradient(
    serve_with: Callable[..., Any], network: LoadedVersion, water_card: Card, problem: str
) -> None:
    loaded = network if problem == "shallow_water" else reaction(water_card)
    names = NAMES if problem == "shallow_water" else ("u", "v")
    rng = np.random.default_rng(1)
    # no number twice: where two slopes are alike the scheme's limiters have kinks
    offset = np.array([1.3, 0.1, 0.0])[: len(names), None, None]
    state = (rng.uniform(-0.1, 0.1, SHAPE)[: len(names)] + offset).astype(np.float32)
    tangent, cotangent = rng.normal(size=(2, *state.shape)).astype(np.float32)

    def by_name(fields: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return dict(zip(names, fields, strict=True))

    pushed, *pulled = Desk(serve_with, (loaded,)).ask(
        RolloutJvpRequest(problem, by_name(state), by_name(tangent), 10, every=5, dtype="float64"),
        *(
            RolloutVjpRequest(problem, by_name(state), by_name(cotangent), 10, wrt=name, dtype="float64")
            for name in names
        ),
    )
    assert (pushed.steps, pushed.values.shape) == ((5, 10), (2, *state.shape))
    exact, extent = double(loaded.surrogate), loaded.card.extent
    at, along = state.astype(np.float64), 1e-7 * tangent.astype(np.float64)
    expected = (frames(exact, at + along, extent) - frames(exact, at - along, extent)) / 2e-7
    for found, wanted in zip(pushed.values, expected[[4, 9]], strict=True):
        # what is served is computed in float32
        assert np.linalg.norm(found - wanted) < 2e-3 * np.linalg.norm(wanted)
    forth = np.vdot(cotangent, pushed.values[1])
    back = sum(np.vdot(each.values, field) for each, field in zip(pulled, tangent, strict=True))
    scale = np.linalg.norm(cotangent) * np.linalg.norm(pushed.values[1])
    assert forth == pytest.approx(back, abs=1e-5 * float(scale))


BAD: list[tuple[dict[str, Any], type[ServiceFault], str]] = [
    ({"tangents": {}}, InvalidField, "tangents: expected some of h, hu, hv, got none"),
    ({"tangents": {"depth": np.ones(SHAPE[1:])}}, InvalidField, "^tangent of 'depth'"),
    ({"tangents": {"h": np.ones((16, 23))}}, InvalidField, r"tangent\.h: expected shape \(16, 24\)"),
    ({"tangents": {"h": np.full(SHAPE[1:], np.nan)}}, InvalidField, "tangent.h"),
    ({"tangents": {"h": np.ones((2, 16, 24)), "hu": np.ones((16, 24))}}, InvalidField, "one shape"),
    ({"tangents": {"h": np.ones((9, 16, 24))}}, TooLarge, "at most 8"),
    ({"tangents": {"h": np.ones((6, 16, 24))}}, InvalidField, "at most 24, got 5 for 6 tangents"),
    ({"steps": 0}, InvalidField, "more than start_step = 0, got 0"),
    ({"steps": 25}, InvalidField, "at most 24, got 25 for 1 tangent;"),
    ({"every": 6}, InvalidField, "no multiple of 6 after start_step = 0 up to steps = 5"),
    ({"wrt": "log_hu"}, InvalidField, "wrt: expected h or hu or hv or log_h, got 'log_hu'"),
    ({"wrt": "hv"}, InvalidField, "wrt: there is no tangent of hv"),
    ({"walls": "periodic"}, InvalidField, "choose another model$"),
    ({"model": "short"}, InvalidField, "starts from 3 frames.*; choose another model$"),
    ({"method": "adjoint"}, NotAvailableYet, "no adjoint of the reference solver.*ask for surrogate"),
    ({"method": "solver"}, NotAvailableYet, "no adjoint"),
    ({"tolerance": 1e-3}, NotCertifiable, "no adjoint.*leave it out"),
    ({"tolerance": -1.0}, InvalidField, "tolerance"),
    ({"problem": "heat"}, UnknownProblem, "heat"),
    ({"problem": "darcy"}, InvalidField, "steady"),
]


@pytest.mark.parametrize(("changes", "fault", "why"), BAD)
def test_what_has_no_tangent_is_refused(
    drifting: Desk, changes: dict[str, Any], fault: type[ServiceFault], why: str
) -> None:
    good = RolloutJvpRequest("shallow_water", {"h": np.ones(SHAPE[1:])}, {"h": np.ones(SHAPE[1:])}, 5)
    drifting.ask(good)
    with pytest.raises(fault, match=why):
        drifting.ask(replace(good, **changes))


@pytest.mark.parametrize("task", ["advance", "jvp"])
def test_a_worker_that_is_lost_leaves_no_step_to_go_on_from(
    drifting: Desk, water: NDArray[np.float32], task: str
) -> None:
    drifting.fatal = (task,)
    with pytest.raises(WorkerLost, match="died twice over this request") as lost:
        drifting.ask(request(water, directions(), 12))
    assert lost.value.step is None
    assert "start_step" not in str(lost.value)


def test_tangents_that_float32_does_not_carry_are_refused_in_float32(
    serve_with: Callable[..., Any], network: LoadedVersion, water: NDArray[np.float32]
) -> None:
    signs = np.sign(directions().astype(np.float64))
    (usual,) = Desk(serve_with, (network,)).ask(request(water, signs, 4))
    for size, why in (
        (3e38, "not finite in float32.*use float64"),
        (1e-300, "too small for float32.*float64"),
    ):
        asked = request(water, size * signs, 4)
        with pytest.raises(InvalidField, match=f"tangent of h,hu,hv is {why}"):
            Desk(serve_with, (network,)).ask(asked)
        (found,) = Desk(serve_with, (network,)).ask(replace(asked, dtype="float64"))
        assert np.linalg.norm(found.values / size - usual.values) < 1e-4 * np.linalg.norm(usual.values)


def test_what_cannot_be_had_in_time_is_refused(drifting: Desk, water: NDArray[np.float32]) -> None:
    asked = request(water, directions(), 12)
    with pytest.raises(DeadlineExceeded, match="ask for fewer steps"):
        drifting.ask(replace(asked, ticket=Ticket(deadline=asked.received + 1e-4)))

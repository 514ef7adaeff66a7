"""The story of a request without a protocol: who computes it, what it may cost, and what is said of it."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike, NDArray
from small_models import small_card

from model_store import LoadedVersion, Reference
from operators import Surrogate
from problems import STEADY_PROBLEMS
from service import gradient
from service.batching.batcher import Batcher, BatchRules
from service.directions import Directions, check_directions
from service.errors import (
    DeadlineExceeded,
    InvalidField,
    NotCertifiable,
    Overloaded,
    TooLarge,
    UnsupportedGrid,
)
from service.gradient import VjpRequest
from service.route import Router
from service.settings import Limits
from service.solver import Queues, Solver, SolveRequest
from service.ticket import ANYBODY, Ticket
from service.versions.models import Models
from service.versions.routing import Route
from service.versions.served import ServedVersion
from service.workers.compute import Surrogates
from service.workers.reference import advance_reference, bound_errors, solve_reference
from service.workers.worker import Batch, Solutions, ThreadWorker, Worker, joined

SIDE: Final = 32
RULES: Final = BatchRules(max_batch=8, queue_seconds=100.0)


def version(number: int, **more: Any) -> ServedVersion:
    about: dict[str, Any] = {
        "name": "darcy",
        "version": number,
        "problem": "darcy",
        "scheme": "tpfa-harmonic-v1",
        "grids": ((SIDE, SIDE),),
        "training_hull": {"contrast_min": 1.0, "contrast_max": 10.0},
    }
    return ServedVersion(**(about | more))


class Doubling(Worker):
    """Answers ``factor`` times the permeability, and remembers what it was asked and gave memory for."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor
        self.batches: list[Batch] = []
        self.given: list[NDArray[Any]] = []

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        batch = joined(parts)
        self.batches.append(batch)
        # its own memory comes without another copy
        for values in (values for part in parts for values in part.fields.values() if values.ndim > 1):
            assert any(values is given or values.base is given for given in self.given)
        permeability = batch.fields["permeability"]
        answers = {"pressure": self.factor * permeability}
        if batch.bucket.task == "vjp":
            answers["gradient.permeability"] = batch.fields["cotangent.pressure"] / permeability
        return Solutions(answers, (0,) * batch.rows)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        self.given.append(np.empty(shape, dtype))
        return self.given[-1]

    @property
    def available(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass
class Told:
    """What was told of comparisons with shadows."""

    differences: list[tuple[str, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def shadow(self, model: str, version: str, shadow: str) -> "Told":
        self.of = f"{model} {version} {shadow}"
        return self

    def observe(self, amount: float) -> None:
        self.differences.append((self.of, amount))

    def rollouts(self, problem: str) -> Any:
        raise AssertionError(f"nobody rolls out {problem}")

    def certified(self, problem: str, method: str, fields: int) -> None:
        raise AssertionError(f"nobody asked {method} for {fields} certified fields of {problem}")

    def shadow_failed(self, model: str, shadow: str) -> None:
        self.failed.append(f"{model} {shadow}")


def with_solver(
    story: Callable[[Solver], Coroutine[Any, Any, None]],
    workers: Mapping[int, Worker],
    routes: Mapping[str, Route] | None = None,
    comparisons: Told | None = None,
    bounds: Worker | None = None,
    rules: BatchRules = RULES,
    references: Worker | None = None,
    **more: Any,
) -> None:
    """Tell a story with ``darcy@1`` and so on, each with a worker of its own."""

    async def run() -> None:
        models = Models()
        for number, worker in workers.items():
            models.add(version(number, **more), Batcher(worker, rules))
        models.route(routes or {"darcy": Route(name="darcy", main=1)})
        solving = references or ThreadWorker(solve_reference)
        others = [solving, ThreadWorker(advance_reference), bounds or ThreadWorker(bound_errors)]
        queues = Queues(*(Batcher(each, rules) for each in others))
        async with Solver(models, queues, Limits(batch=32, grid_side=1024), comparisons) as solver:
            async with asyncio.timeout(30):
                await story(solver)

    asyncio.run(run())


def field_of(value: float = 1.0, side: int = SIDE) -> NDArray[np.float32]:
    return np.full((side, side), value, np.float32)


def request(value: float = 1.0, **options: Any) -> SolveRequest:
    return SolveRequest("darcy", {"permeability": field_of(value)}, **options)


def test_an_answer_without_trust_asks_nobody_for_it() -> None:
    worker, bounds = Doubling(), Doubling()

    async def story(solver: Solver) -> None:
        response = await solver.solve(request(3.0, error="none"))
        assert (response.errors, response.in_distribution, response.batch_size) == (None, None, 1)
        assert response.single
        assert (response.model, response.method, response.operator) == (
            "darcy@1",
            "surrogate",
            "tpfa-harmonic-v1",
        )
        np.testing.assert_array_equal(response.fields["pressure"], field_of(6.0))

    with_solver(story, {1: worker}, bounds=bounds)
    assert bounds.batches == []


def test_an_answer_is_bounded_and_compared_with_the_training() -> None:
    async def story(solver: Solver) -> None:
        for value, known in ((1.0, True), (99.0, False)):
            fields = field_of(1.0)
            fields[0] = value
            response = await solver.solve(SolveRequest("darcy", {"permeability": fields}))
            assert response.in_distribution == (known,)
            assert response.errors is not None
            assert response.errors[0].upper > 0.1
            assert response.timing.certify > 0

    with_solver(story, {1: Doubling()})


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", ">f4", ">f8"])
def test_inputs_of_any_dtype_are_copied_once_into_the_worker_s_memory(dtype: str) -> None:
    worker = Doubling()

    async def story(solver: Solver) -> None:
        given = field_of(3.0).astype(dtype)
        response = await solver.solve(
            SolveRequest("darcy", {"permeability": given, "source": 2}, error="none")
        )
        np.testing.assert_array_equal(response.fields["pressure"], field_of(6.0))

    with_solver(story, {1: worker})
    (batch,) = worker.batches
    assert {name: values.dtype for name, values in batch.fields.items()} == {
        "permeability": np.float32,
        "source": np.float32,
    }
    assert float(batch.fields["source"][0]) == 2.0


def test_large_requests_get_the_same_answers_off_the_loop() -> None:
    async def story(solver: Solver) -> None:
        many = np.stack([field_of(float(n)) for n in range(1, 33)] * 1).astype(np.float64)
        large = np.broadcast_to(many[:, :1, :1], (32, 64, 64)).copy()
        assert large.nbytes > 256 * 2**10
        response = await solver.solve(SolveRequest("darcy", {"permeability": large}, error="none"))
        np.testing.assert_array_equal(response.fields["pressure"], 2 * large)
        assert (response.single, response.batch_size) == (False, 8)
        large[17, 5, 6] = -1.0
        with pytest.raises(InvalidField) as refusal:
            await solver.solve(SolveRequest("darcy", {"permeability": large}))
        assert refusal.value.index == (17, 5, 6)

    with_solver(story, {1: Doubling()}, grids=((64, 64),))


def test_a_grid_that_was_not_tested_is_refused_before_the_queue() -> None:
    worker = Doubling()

    async def story(solver: Solver) -> None:
        with pytest.raises(UnsupportedGrid):
            await solver.solve(SolveRequest("darcy", {"permeability": field_of(1.0, 16)}))

    with_solver(story, {1: worker})
    assert worker.batches == []


def test_numbers_that_mean_nothing_are_not_answered() -> None:
    async def story(solver: Solver) -> None:
        for dtype in ("float32", "float64"):
            with pytest.raises(InvalidField, match="not finite"):
                await solver.solve(request(dtype=dtype, error="none"))
        # their squares overflow, they do not
        large = await solver.solve(request(1e-5, error="none"))
        assert float(large.fields["pressure"][0, 0]) > 1e30

    class Exploding(Doubling):
        async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
            self.factor = np.inf if parts[0].fields["permeability"][0, 0, 0] == 1 else 1e37
            return await Doubling.run(self, parts, pad_to=pad_to)

    with_solver(story, {1: Exploding()})


def test_a_deadline_that_passed_is_an_error_and_one_to_come_is_kept() -> None:
    async def story(solver: Solver) -> None:
        now = time.perf_counter()
        with pytest.raises(DeadlineExceeded):
            await solver.solve(request(ticket=Ticket(deadline=now - 1.0)))
        answer = await solver.solve(request(ticket=Ticket(deadline=now + 60.0)))
        assert answer.errors is not None

    with_solver(story, {1: Doubling()})


class Stuck(Doubling):
    """Computes, and is never done."""

    def __init__(self) -> None:
        super().__init__()
        self.busy = asyncio.Event()

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
        self.busy.set()
        await asyncio.Event().wait()
        return Solutions({}, ())


def test_what_finds_no_room_for_its_bound_is_not_solved() -> None:
    worker, stuck = Doubling(), Stuck()

    async def story(solver: Solver) -> None:
        first = asyncio.create_task(solver.solve(request()))
        await stuck.busy.wait()
        with pytest.raises(Overloaded):
            await solver.solve(request())
        with pytest.raises(Overloaded):
            await solver.solve(request(method="hybrid"))
        with pytest.raises(Overloaded):
            await solver.differentiate(vjp(method="adjoint", model="darcy"))
        assert len(worker.batches) == 1
        assert (await solver.solve(request(error="none"))).errors is None
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    with_solver(story, {1: worker}, bounds=stuck, rules=BatchRules(queue_bytes=10**4))


def test_a_canary_answers_its_share_and_keys_stay_where_they_are() -> None:
    route = Route(name="darcy", main=1, canary=2, weight=0.25)

    async def story(solver: Solver) -> None:
        found: dict[str, set[str | None]] = {}
        for key in [f"client {n % 40}" for n in range(80)]:
            answer = await solver.solve(request(error="none", key=key))
            found.setdefault(key, set()).add(answer.model)
        assert all(len(models) == 1 for models in found.values())
        assert {model for models in found.values() for model in models} == {"darcy@1", "darcy@2"}
        # without keys they take turns
        answers = [await solver.solve(request(error="none")) for _ in range(80)]
        assert 5 <= sum(answer.model == "darcy@2" for answer in answers) <= 35

    with_solver(story, {1: Doubling(), 2: Doubling(3.0)}, {"darcy": route})


# --- shadows


SHADOWED: Final = {"darcy": Route(name="darcy", main=1, shadow=2)}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_a_shadow_is_asked_the_same_and_compared() -> None:
    told, shadow = Told(), Doubling(3.0)

    async def story(solver: Solver) -> None:
        answer = await solver.solve(request(error="none"))
        assert answer.model == "darcy@1"
        np.testing.assert_array_equal(answer.fields["pressure"], field_of(2.0))
        await until(lambda: bool(told.differences))

    # it takes what the other one was given
    shadow.given = (main := Doubling()).given
    with_solver(story, {1: main, 2: shadow}, SHADOWED, told)
    ((pair, difference),) = told.differences
    assert pair == "darcy 1 2"
    assert difference == pytest.approx(0.5)


def test_a_shadow_that_breaks_breaks_nothing() -> None:
    told = Told()

    async def story(solver: Solver) -> None:
        answer = await solver.solve(request(error="none"))
        np.testing.assert_array_equal(answer.fields["pressure"], field_of(2.0))
        await until(lambda: bool(told.failed))

    class Broken(Doubling):
        async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:  # noqa: ARG002
            raise ArithmeticError("broken")

    with_solver(story, {1: Doubling(), 2: Broken()}, SHADOWED, told)
    assert (told.failed, told.differences) == (["darcy 2"], [])


def test_a_slow_shadow_holds_a_bounded_number_of_requests() -> None:
    class Stuck(Doubling):
        async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
            self.batches += parts
            await asyncio.Event().wait()
            return await Doubling.run(self, parts, pad_to=pad_to)

    stuck = Stuck()

    async def story(solver: Solver) -> None:
        for _ in range(50):
            await solver.solve(request(error="none"))
        held = [each for each in asyncio.all_tasks() if "_compare" in repr(each)]
        assert 1 <= len(held) <= 8

    with_solver(story, {1: Doubling(), 2: stuck}, SHADOWED, Told())


# --- gradients


def test_what_finds_no_room_for_its_certificate_is_not_solved() -> None:
    worker, stuck = Doubling(), Stuck()

    async def story(solver: Solver) -> None:
        vouched = request(method="surrogate", tolerance=0.5)
        first = asyncio.create_task(solver.solve(vouched))
        await stuck.busy.wait()
        with pytest.raises(Overloaded):
            await solver.solve(vouched)
        assert len(worker.batches) == 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    with_solver(story, {1: worker}, references=stuck, rules=BatchRules(queue_bytes=10**4))


def vjp(**options: Any) -> VjpRequest:
    fields = {"problem": "darcy", "given": {"permeability": field_of(4.0)}, "method": "surrogate"}
    return VjpRequest(**(fields | {"cotangents": {"pressure": field_of(8.0)}} | options))


def test_a_gradient_is_the_worker_s_and_that_of_the_logarithm_follows() -> None:
    async def story(solver: Solver) -> None:
        plain = await solver.differentiate(vjp())
        assert (plain.name, plain.model, plain.method, plain.in_distribution) == (
            "permeability",
            "darcy@1",
            "surrogate",
            (True,),
        )
        assert plain.values.shape == (SIDE, SIDE)
        assert (plain.errors, plain.certified) == (None, False)
        np.testing.assert_array_equal(plain.values, field_of(2.0))
        logarithm = await solver.differentiate(vjp(wrt="log_permeability", dtype="float64"))
        assert (logarithm.name, logarithm.values.dtype.name) == ("log_permeability", "float64")
        np.testing.assert_array_equal(logarithm.values, field_of(8.0))
        batch = {"permeability": np.stack([field_of(1.0), field_of(2.0)])}
        many = await solver.differentiate(vjp(given=batch, cotangents={"pressure": batch["permeability"]}))
        np.testing.assert_array_equal(many.values, np.ones((2, SIDE, SIDE)))

    with_solver(story, {1: Doubling()})


@pytest.mark.parametrize(
    ("options", "field", "rule"),
    [
        ({"wrt": "pressure"}, "wrt", "unknown"),
        ({"wrt": "log_pressure"}, "wrt", "unknown"),
        ({"wrt": ""}, "wrt", "unknown"),
        ({"cotangents": {}}, "cotangents", "missing"),
        ({"cotangents": {"flux": field_of()}}, "cotangents", "unknown"),
        ({"cotangents": {"pressure": field_of(1.0, 16)}}, "cotangent.pressure", "shape"),
        ({"cotangents": {"pressure": field_of(np.nan)}}, "cotangent.pressure", "finite"),
        ({"cotangents": {"pressure": field_of().astype(str)}}, "cotangent.pressure", "dtype"),
        ({"cotangents": {"pressure": np.full((SIDE, SIDE), 1e300)}}, "cotangent.pressure", "float32"),
        ({"given": {"permeability": field_of(-1.0)}}, "permeability", "exclusive_minimum"),
    ],
)
def test_gradients_of_what_makes_no_sense_are_refused(options: dict[str, Any], field: str, rule: str) -> None:
    worker = Doubling()

    async def story(solver: Solver) -> None:
        with pytest.raises(InvalidField) as refusal:
            await solver.differentiate(vjp(**options))
        assert (refusal.value.field, refusal.value.rule) == (field, rule)

    with_solver(story, {1: worker})
    assert worker.batches == []


@pytest.mark.parametrize("method", ["auto", "adjoint", "solver"])
def test_gradients_of_the_discrete_problem_need_no_model(method: str) -> None:
    worker = Doubling()

    async def story(solver: Solver) -> None:
        found = await solver.differentiate(vjp(method=method))
        assert (found.model, found.method, found.certified) == (None, "adjoint", True)
        # the pressure is proportional to 1 / permeability, so that the sum of its changes is minus itself
        answer = await solver.solve(request(4.0, method="solver", dtype="float64"))
        product = float(np.sum(answer.fields["pressure"] * field_of(8.0)))
        assert float(np.sum(found.values * field_of(4.0))) == pytest.approx(-product, rel=1e-4)

    with_solver(story, {1: worker})
    assert worker.batches == []


def test_several_cotangents_are_those_of_each_field() -> None:
    worker = Doubling()

    async def story(solver: Solver) -> None:
        several = np.stack([field_of(8.0), field_of(16.0), field_of(-4.0)])
        found = await solver.differentiate(vjp(cotangents={"pressure": several}))
        np.testing.assert_array_equal(found.values, several / 4)
        fields = np.stack([field_of(1.0), field_of(2.0)])
        of_each = np.stack([several[:2], several[1:]])
        given = {"given": {"permeability": fields}, "cotangents": {"pressure": of_each}}
        found = await solver.differentiate(vjp(**given))
        np.testing.assert_array_equal(found.values, of_each / fields)
        with pytest.raises(TooLarge, match="at most 32"):
            await solver.differentiate(vjp(cotangents={"pressure": np.ones((33, SIDE, SIDE))}))

    with_solver(story, {1: worker})


def test_many_cotangents_of_a_small_field_are_looked_through_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []

    def checked(*given: Any) -> Directions:
        threads.append(threading.current_thread())
        return check_directions(*given)

    monkeypatch.setattr(gradient, "check_directions", checked)
    few, many = np.ones((2, SIDE, SIDE)), np.ones((32, SIDE, SIDE + 1))

    async def story(solver: Solver) -> None:
        await solver.differentiate(vjp(cotangents={"pressure": few}))
        with pytest.raises(InvalidField):
            await solver.differentiate(vjp(cotangents={"pressure": many}))

    with_solver(story, {1: Doubling()})
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


def test_a_surrogate_s_gradient_meets_no_tolerance() -> None:
    async def story(solver: Solver) -> None:
        with pytest.raises(NotCertifiable, match="ask for adjoint"):
            await solver.differentiate(vjp(tolerance=1e-6))

    with_solver(story, {1: Doubling()})


# --- which method meets a tolerance


class Timed(Doubling):
    """Is a good surrogate of a constant permeability of 1, and says that it takes so long."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def run(self, parts: Sequence[Batch], *, pad_to: int | None = None) -> Solutions:
        found = await super().run(parts, pad_to=pad_to)
        exact = solve_reference(replace_bucket(joined(parts)))
        return found._replace(fields=exact.fields, seconds=self._seconds)


def replace_bucket(batch: Batch) -> Batch:
    """The same for the reference solver, whose answers are rounded."""
    solved = replace(batch.bucket, version=None)
    return Batch(solved, {name: np.asarray(values, np.float64) for name, values in batch.fields.items()})


def test_auto_starts_from_a_surrogate_only_where_that_is_known_to_cost_less() -> None:
    async def story(solver: Solver) -> None:
        first = await solver.solve(request(tolerance=1e-6))
        # nothing is known yet
        assert (first.method, first.certified) == ("solver", True)
        second = await solver.solve(request(tolerance=1e-6))
        assert second.method == "solver"
        hybrid = await solver.solve(request(tolerance=1e-6, method="hybrid"))
        assert (hybrid.method, hybrid.model, hybrid.certified) == ("hybrid", "darcy@1", True)
        assert hybrid.errors is not None
        assert hybrid.errors[0].upper <= 1e-6
        assert hybrid.fields["pressure"].dtype == np.float64

    with_solver(story, {1: Timed(1.0)})


def test_what_is_measured_decides() -> None:
    """The solver's batches take ten seconds, as its clock has it, and the surrogate's a microsecond."""

    async def story() -> None:
        models = Models()
        surrogate = Batcher(Timed(0.0), RULES)
        models.add(version(1), surrogate)
        models.route({"darcy": Route(name="darcy", main=1)})
        queues = Queues(
            *(
                Batcher(ThreadWorker(each), RULES)
                for each in (solve_reference, advance_reference, bound_errors)
            )
        )
        async with Solver(models, queues, Limits(batch=32, grid_side=64)) as solver:
            chosen = Router(models, queues.references)
            grid = (SIDE, SIDE)
            alone = chosen.reference(STEADY_PROBLEMS["darcy"], None, "", grid).bucket
            learnt = chosen.surrogate(STEADY_PROBLEMS["darcy"], None, "", grid, ANYBODY).bucket
            surrogate.learn(learnt, 1, 1e-6)
            queues.references.learn(replace(alone, task="refine"), 1, 10.0)
            assert (await solver.solve(request(tolerance=1e-6))).method == "hybrid"
            # a model that does not know the grid is no start
            other = SolveRequest("darcy", {"permeability": field_of(1.0, 16)}, tolerance=1e-6)
            assert (await solver.solve(other)).method == "solver"

    asyncio.run(story())


def test_an_unknown_problem_or_tolerance_is_refused_before_anything_is_computed() -> None:
    worker = Doubling()

    async def story(solver: Solver) -> None:
        for tolerance in (0.0, -1.0, 1.0, float("nan"), "exact"):
            with pytest.raises(InvalidField) as refusal:
                await solver.solve(request(tolerance=tolerance))
            assert refusal.value.field == "tolerance"

    with_solver(story, {1: worker})
    assert worker.batches == []


# --- a real surrogate


def real(surrogate: Surrogate) -> Worker:
    card = small_card(grids=((SIDE, SIDE),), training_hull={})
    loaded = LoadedVersion(Reference("darcy", 1), card, surrogate)
    return ThreadWorker(Surrogates([loaded], torch.device("cpu")), lambda: torch.set_num_threads(1))


def random_fields(count: int, seed: int) -> NDArray[np.float32]:
    return np.exp(np.random.default_rng(seed).standard_normal((count, SIDE, SIDE))).astype(np.float32)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_reproducible_answers_have_the_same_bits_whatever_the_load(surrogate: Surrogate, size: int) -> None:
    fields = random_fields(3, 0)

    async def ask(solver: Solver, given: NDArray[Any], *, reproducible: bool = True) -> NDArray[Any]:
        ticket = Ticket(reproducible=reproducible)
        wanted = SolveRequest("darcy", {"permeability": given}, error="none", ticket=ticket)
        return (await solver.solve(wanted)).fields["pressure"]

    async def story(solver: Solver) -> None:
        alone = [await ask(solver, each) for each in fields]
        for companions in (0, 1, 2, 5, 11):
            for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
                others = [
                    ask(solver, each, reproducible=bool(n % 2))
                    for n, each in enumerate(random_fields(companions, companions))
                ]
                # some before, some after: other slots, other neighbors
                mine = [ask(solver, fields[n]) for n in order]
                found = await asyncio.gather(*others[: companions // 2], *mine, *others[companions // 2 :])
                for n, answer in zip(order, found[companions // 2 :], strict=False):
                    assert answer.tobytes() == alone[n].tobytes()
        # as one request of many rows, some of which are parts of two batches
        many = await ask(solver, np.concatenate([random_fields(3, 7), fields]))
        assert [row.tobytes() for row in many[3:]] == [row.tobytes() for row in alone]

    with_solver(story, {1: real(surrogate)}, rules=replace(RULES, reproducible_rows=size))


def test_a_gradient_agrees_with_differences(surrogate: Surrogate) -> None:
    async def story(solver: Solver) -> None:
        (given,), (cotangent,) = random_fields(1, 1), random_fields(1, 2)
        fields = {"permeability": given}, {"pressure": cotangent}
        wanted = VjpRequest("darcy", *fields, wrt="log_permeability", method="surrogate")
        gradient = (await solver.differentiate(wanted)).values
        direction = np.random.default_rng(3).standard_normal(given.shape)
        step = 1e-2

        async def product(factor: float) -> float:
            shifted = given * np.exp(factor * direction)
            answer = await solver.solve(SolveRequest("darcy", {"permeability": shifted}, error="none"))
            return float(np.vdot(answer.fields["pressure"].astype(float), cotangent))

        difference = (await product(step) - await product(-step)) / (2 * step)
        assert float(np.vdot(gradient, direction)) == pytest.approx(difference, rel=2e-2)

    with_solver(story, {1: real(surrogate)})

"""Certified answers, derivatives and quantities of the built-in model, checked by solvers from outside."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu
from service_thread import running_service

from benchmarks import certificate_cases
from problems import STEADY_PROBLEMS, Grid
from problems.permeability import FAMILIES
from service.client import AsyncClient, Client, ServiceError
from service.processes.supervisor import Addresses
from service.settings import Limits, Settings

SIDE = 128
SOLVE = "/v1/problems/darcy/solve"
NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}


@pytest.fixture(scope="module")
def addresses() -> Iterator[Addresses]:
    """The service as ``make serve`` has it, on the built-in model, in one process."""
    limits = Limits(batch=8, grid_side=160)
    with running_service(Settings(models=("darcy",), threads=1, limits=limits)) as (addresses, _):
        yield addresses


@pytest.fixture
def http(addresses: Addresses) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=addresses.http, timeout=60) as client:
        yield client


Ask = Callable[..., Any]


ASYNC = [pytest.param(way, marks=pytest.mark.slow) for way in ("async-http", "async-grpc")]


@pytest.fixture(params=["http", "grpc", *ASYNC])
def ask(request: pytest.FixtureRequest, addresses: Addresses) -> Iterator[Ask]:
    """``ask("solve", "darcy", field, ...)`` over each of the protocols, with both clients."""
    way: str = request.param
    url = addresses.grpc if way.endswith("grpc") else addresses.http
    assert url is not None
    if way.startswith("async"):

        async def asked(what: str, *given: Any, **options: Any) -> Any:
            async with AsyncClient(url) as client:
                return await getattr(client, what)(*given, **options)

        yield lambda what, *given, **options: asyncio.run(asked(what, *given, **options))
    else:
        with Client(url) as client:
            yield lambda what, *given, **options: getattr(client, what)(*given, **options)


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@cache
def media(count: int = 2, contrast: float = 10.0, side: int = SIDE) -> NDArray[np.float64]:
    """Two-valued fields [count side side]: random waves above their mean."""
    rng = np.random.default_rng(7)
    y, x = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij")
    fields = np.zeros((count, side, side))
    for field in fields:
        for _ in range(12):
            ky, kx, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6)
            field += rng.standard_normal() * np.cos(ky * y + kx * x + phase)
    return np.where(fields > 0, 1.0, 1 / contrast)


class Direct:
    """The equations of ``tpfa-harmonic-v1`` on the unit square, assembled and solved without our code."""

    def __init__(self, a: NDArray[np.float64]) -> None:
        self.a = a
        ny, nx = a.shape
        cell = np.arange(ny * nx).reshape(ny, nx)
        across = [(a[:, :-1], a[:, 1:], cell[:, :-1], cell[:, 1:], nx / ny)]
        across += [(a[:-1], a[1:], cell[:-1], cell[1:], ny / nx)]
        rows, columns, values = [], [], []
        diagonal = np.zeros((ny, nx))
        for one, other, here, there, ratio in across:
            t = (2 * ratio * one * other / (one + other)).ravel()
            rows += [here.ravel(), there.ravel()]
            columns += [there.ravel(), here.ravel()]
            values += [-t, -t]
            np.add.at(diagonal.ravel(), here.ravel(), t)
            np.add.at(diagonal.ravel(), there.ravel(), t)
        diagonal[:, [0, -1]] += 2 * (nx / ny) * a[:, [0, -1]]
        diagonal[[0, -1]] += 2 * (ny / nx) * a[[0, -1]]
        rows.append(cell.ravel()), columns.append(cell.ravel()), values.append(diagonal.ravel())
        where = (np.concatenate(rows), np.concatenate(columns))
        self.matrix = coo_array((np.concatenate(values), where), shape=(a.size, a.size)).tocsc()
        self.factors = splu(self.matrix)
        self.load = np.full(a.size, 1 / a.size)

    def solve(self, source: float = 1.0) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.factors.solve(source * self.load)
        # one step of refinement
        found += self.factors.solve(source * self.load - self.matrix @ found)
        return found.reshape(self.a.shape)

    def error(self, pressure: NDArray[Any], source: float = 1.0) -> float:
        """Relative energy error of an answer."""
        exact = self.solve(source).ravel()
        wrong = np.asarray(pressure, np.float64).ravel() - exact
        return float(np.sqrt(wrong @ (self.matrix @ wrong) / (exact @ (self.matrix @ exact))))


@cache
def direct(row: int = 0) -> Direct:
    return Direct(media()[row])


# --- tolerances


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6, 1e-8])
def test_an_answer_meets_its_tolerance(ask: Ask, tolerance: float) -> None:
    answer = ask("solve", "darcy", media().astype(np.float32), source=2.0, tolerance=tolerance)
    assert answer.certified is True
    assert answer.pressure.dtype == np.float64
    assert answer.method in ("hybrid", "solver")
    assert answer.iterations > 0 or tolerance > 1e-3
    for row, pressure in enumerate(answer.pressure):
        error = answer.error[row]
        assert error.upper <= tolerance
        assert Direct(media()[row].astype(np.float32).astype(np.float64)).error(pressure, 2.0) <= error.upper


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "methods", "each"), [(32, ("auto", "solver"), 60), (48, ("auto",), 30), (SIDE, ("hybrid",), 10)]
)
def test_a_thousand_answers_meet_their_tolerances(
    addresses: Addresses, side: int, methods: tuple[str, ...], each: int
) -> None:
    """``each`` of ten families, tolerances from 1e-2 to 1e-8: the three together are 1,000 requests."""
    rng, urls = np.random.default_rng(side), (addresses.http, addresses.grpc)
    clients = [Client(url) for url in urls if url is not None]
    assert len(clients) == 2
    tightest = 1.0
    for name, sample in certificate_cases.FAMILIES.items():
        for index in range(each):
            field, tolerance = sample(index, Grid((side, side))), 10 ** rng.uniform(-8, -2)
            method = methods[index % len(methods)]
            client = clients[index // len(methods) % 2]
            answer = client.solve("darcy", field, tolerance=tolerance, method=method)
            assert answer.certified is True, (name, index)
            assert answer.pressure.dtype == np.float64
            error = Direct(field).error(answer.pressure)
            # the direct solver rounds, too
            assert error <= answer.error.upper + 1e-11, (name, index, tolerance)
            assert answer.error.upper <= tolerance, (name, index)
            tightest = min(tightest, tolerance)
    assert tightest < 1e-7
    for client in clients:
        client.close()


@pytest.mark.parametrize("method", ["hybrid", "solver"])
def test_both_methods_get_there(ask: Ask, method: str) -> None:
    answer = ask("solve", "darcy", media()[0], method=method, tolerance=1e-6)
    assert (answer.method, answer.certified) == (method, True)
    assert (answer.model is None) == (method == "solver")
    assert direct().error(answer.pressure) <= answer.error.upper <= 1e-6
    assert answer.in_distribution in (True, False)


def test_a_surrogate_s_own_answer_is_certified_where_it_is_good_enough(ask: Ask) -> None:
    answer = ask("solve", "darcy", media()[0], method="surrogate", tolerance=0.5)
    assert (answer.method, answer.certified, answer.iterations) == ("surrogate", True, 0)
    assert direct().error(answer.pressure) <= answer.error.upper <= 0.5
    with pytest.raises(ServiceError, match="surrogate's own answer") as refused:
        ask("solve", "darcy", media()[0], method="surrogate", tolerance=1e-6)
    assert (refused.value.status, refused.value.type) == (409, "not-certifiable")


def test_as_exact_as_the_grid_resolves(ask: Ask) -> None:
    answer = ask("solve", "darcy", media()[0], tolerance="discretization")
    assert answer.certified is True
    assert answer.error.reference == "pde"
    # the distance to the equation's own solution is that of the grid, and no solver takes it away
    assert 1e-3 < answer.error.upper < 0.5
    assert direct().error(answer.pressure) <= 0.11 * answer.error.upper


def test_json_says_the_same(http: httpx.Client) -> None:
    field = media()[0]
    answer = http.post(SOLVE, json={"permeability": field.tolist(), "tolerance": 1e-8}).json()
    assert answer["certified"] is True
    assert answer["error"]["upper"] <= 1e-8
    assert direct().error(np.array(answer["pressure"])) <= 1e-8
    bare = http.post(f"{SOLVE}?tolerance=1e-6&error=none", content=npy(field), headers=NPY)
    headers = bare.headers
    assert (headers["Mno-Certified"], headers["Mno-Error-Estimate"]) == ("true", "null")
    assert int(headers["Mno-Iterations"]) > 0
    assert direct().error(np.load(io.BytesIO(bare.content))) <= 1e-6
    told = http.post(f"{SOLVE}?tolerance=1e-6", content=npy(field.astype(np.float32)), headers=NPY)
    assert np.load(io.BytesIO(told.content)).dtype == np.float64
    assert json.loads(told.headers["Mno-Error-Estimate"])["upper"] <= 1e-6


def test_what_cannot_be_met_is_refused(ask: Ask) -> None:
    hard = media(contrast=1e9)[0]
    for field, tolerance, more in (
        (media()[0], 1e-300, {}),
        (hard, 1e-14, {}),
        (media()[0], 1e-6, {"timeout_ms": 1e-3}),
    ):
        with pytest.raises(ServiceError) as refused:
            ask("solve", "darcy", field, tolerance=tolerance, **more)
        # over gRPC the client's own clock may be first
        known = {"not-certifiable", "deadline-exceeded"} if more else {"not-certifiable"}
        assert refused.value.type in known
        assert refused.value.status in ((409, 504) if more else (409,))


def test_a_deadline_of_a_tolerance_is_not_certifiable(http: httpx.Client) -> None:
    query = "tolerance=1e-6&timeout_ms=0.001"
    answer = http.post(f"{SOLVE}?{query}", content=npy(media()[0]), headers=NPY)
    assert (answer.status_code, answer.json()["type"]) == (409, "not-certifiable")


@pytest.mark.parametrize(
    ("query", "refusal"),
    [
        ("tolerance=1e-6&timeout_ms=0.001", (409, "not-certifiable")),
        ("timeout_ms=0.001", (504, "deadline-exceeded")),
    ],
)
def test_so_is_that_of_a_derivative_or_a_quantity(
    http: httpx.Client, query: str, refusal: tuple[int, str]
) -> None:
    stack, field = npy(np.stack([media()[0]] * 2)), npy(media()[0])
    for path, body in (("vjp", stack), ("jvp", stack), ("quantities", field)):
        wanted = f"{query}&quantities=mean" if path == "quantities" else query
        headers = NPY if path != "quantities" else {"Content-Type": NPY["Content-Type"]}
        answer = http.post(f"/v1/problems/darcy/{path}?{wanted}", content=body, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == refusal, path


@pytest.mark.parametrize("tolerance", [0, -1e-6, 1, 7.5, "exact"])
def test_what_is_no_tolerance_is_refused(http: httpx.Client, tolerance: Any) -> None:
    answer = http.post(SOLVE, json={"permeability": media()[0].tolist(), "tolerance": tolerance})
    assert (answer.status_code, answer.json()["field"]) == (422, "tolerance")


def test_other_grids_than_the_surrogate_s_are_solved(ask: Ask) -> None:
    field = media(1, side=96)[0]
    answer = ask("solve", "darcy", field, tolerance=1e-6)
    assert (answer.method, answer.certified) == ("solver", True)
    assert Direct(field).error(answer.pressure) <= 1e-6
    with pytest.raises(ServiceError) as refused:
        ask("solve", "darcy", field, tolerance=1e-6, method="hybrid")
    assert refused.value.status == 422


def test_without_a_tolerance_hybrid_is_rounded_like_the_others(ask: Ask) -> None:
    answer = ask("solve", "darcy", media()[0].astype(np.float32), method="hybrid")
    assert (answer.method, answer.certified, answer.pressure.dtype) == ("hybrid", False, np.float32)
    error = Direct(media()[0].astype(np.float32).astype(np.float64)).error(answer.pressure)
    assert error <= answer.error.upper < 1e-4


# --- certificates


def test_a_certificate_has_two_sides(ask: Ask) -> None:
    answer = ask("solve", "darcy", media(), error="certified")
    assert answer.method == "surrogate"
    for row, error in enumerate(answer.error):
        exact = direct(row).error(answer.pressure[row])
        assert error.lower <= exact <= error.upper
        assert error.upper - error.lower <= 0.051 * error.upper
    assert answer.timing_ms["certify"] > 0


def test_bounds_in_other_norms_are_told_where_they_are_known(ask: Ask) -> None:
    cheap = ask("solve", "darcy", media()[0], error="bound").error
    assert (cheap.l2_lower, cheap.l2_upper, cheap.max_lower, cheap.max_upper) == (0, np.inf, 0, np.inf)
    field = media()[0]
    answer = ask("solve", "darcy", field, error="certified", tolerance=1e-3, method="hybrid")
    wrong, exact = np.abs(answer.pressure - direct().solve()), np.abs(direct().solve())
    l2 = float(np.linalg.norm(wrong) / np.linalg.norm(exact))
    assert answer.error.l2_lower <= l2 + 1e-12
    assert l2 - 1e-12 <= answer.error.l2_upper < np.inf
    assert wrong.max() / exact.max() - 1e-12 <= answer.error.max_upper < np.inf


def test_certificates_and_tolerances_go_together(ask: Ask) -> None:
    answer = ask("solve", "darcy", media()[0], error="certified", tolerance=1e-3, method="hybrid")
    exact = direct().error(answer.pressure)
    assert answer.error.lower <= exact <= answer.error.upper <= 1e-3


# --- derivatives


def product(a: NDArray[np.float64], cotangent: NDArray[np.float64]) -> float:
    return float(np.vdot(Direct(a).solve(), cotangent))


def slope(a: NDArray[np.float64], cotangent: NDArray[np.float64], change: NDArray[np.float64]) -> float:
    """How ``sum(cotangent * pressure)`` changes with the logarithm of the permeability along ``change``."""
    step = 2.0**-10
    ends = [product(a * np.exp(sign * step * change), cotangent) for sign in (1, -1)]
    halves = [product(a * np.exp(sign * step / 2 * change), cotangent) for sign in (1, -1)]
    # Richardson's extrapolation of central differences
    coarse, fine = (
        (one - other) / (2 * step * factor) for (one, other), factor in ((ends, 1), (halves, 0.5))
    )
    return (4 * fine - coarse) / 3


def changes() -> NDArray[np.float64]:
    rng = np.random.default_rng(3)
    return rng.uniform(-1, 1, (3, SIDE, SIDE))


def test_gradients_are_certified_in_every_direction(ask: Ask) -> None:
    a = media()[0]
    cotangents = np.stack([np.full(a.shape, 1 / a.size), changes()[0]])
    found = ask("vjp", "darcy", a, cotangents, wrt="log_permeability")
    assert (found.method, found.certified, found.model) == ("adjoint", True, None)
    assert found.gradient.shape == (2, SIDE, SIDE)
    assert np.shape(found.error) == (2,)
    for cotangent, gradient, error in zip(cotangents, found.gradient, found.error, strict=True):
        for change in (changes()[1], np.sign(changes()[2]), np.ones(a.shape)):
            exact = slope(a, cotangent, change)
            room = 1e-6 * abs(exact) + 1e-12
            assert abs(float(np.vdot(gradient, change)) - exact) <= error * np.abs(change).max() + room
    (alone,) = (ask("vjp", "darcy", a, cotangents[0]),)
    assert alone.gradient.shape == a.shape
    np.testing.assert_allclose(alone.gradient * a, found.gradient[0], rtol=1e-9, atol=1e-12)
    assert isinstance(alone.error, float)


def test_one_direction_on_an_axis_of_its_own_keeps_it(ask: Ask) -> None:
    a, direction = media()[0], changes()[0]
    for what, name in (("vjp", "gradient"), ("jvp", "tangent")):
        several, alone = ask(what, "darcy", a, direction[None]), ask(what, "darcy", a, direction)
        assert getattr(several, name).shape == (1, SIDE, SIDE)
        assert np.shape(several.error) == (1,)
        np.testing.assert_array_equal(getattr(several, name)[0], getattr(alone, name))
    nothing = ask("vjp", "darcy", a.astype(np.float32), direction[None], method="surrogate")
    assert (nothing.gradient.shape, nothing.error) == ((1, SIDE, SIDE), None)


def test_a_tighter_tolerance_gives_a_better_gradient(ask: Ask) -> None:
    a, cotangent = media()[0], changes()[0]
    loose = ask("vjp", "darcy", a, cotangent)
    tight = ask("vjp", "darcy", a, cotangent, tolerance=1e-9)
    assert tight.error < 1e-3 * loose.error


def test_surrogate_gradients_say_that_nothing_is_known(ask: Ask) -> None:
    a = media()[0].astype(np.float32)
    cotangents = np.stack([np.ones_like(a), a])
    found = ask("vjp", "darcy", a, cotangents, method="surrogate", reproducible=True)
    assert (found.method, found.certified, found.error) == ("surrogate", False, None)
    assert found.model is not None
    assert found.gradient.shape == (2, SIDE, SIDE)
    one = ask("vjp", "darcy", a, cotangents[1], model="darcy", reproducible=True)
    assert one.method == "surrogate"
    np.testing.assert_allclose(one.gradient, found.gradient[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["adjoint", "surrogate"])
def test_a_tangent_predicts_what_a_change_does(ask: Ask, method: str) -> None:
    a, change = media()[0], np.cos(4 * changes()[0])
    found = ask("jvp", "darcy", a, change, wrt="log_permeability", method=method)
    step = 2.0**-10
    ends = [Direct(a * np.exp(sign * step * change)).solve() for sign in (1, -1)]
    exact = (ends[0] - ends[1]) / (2 * step)
    wrong = float(np.linalg.norm(found.tangent - exact) / np.linalg.norm(exact))
    assert found.of == "pressure"
    if method == "adjoint":
        assert (found.certified, found.tangent.dtype) == (True, np.float64)
        error = (found.tangent - exact).ravel() @ (direct().matrix @ (found.tangent - exact).ravel())
        size = exact.ravel() @ (direct().matrix @ exact.ravel())
        assert np.sqrt(error / size) <= found.error + 1e-5
        assert found.error < 0.1
    else:
        assert (found.certified, found.error) == (False, None)
        assert wrong < 1.0


def test_tangents_and_cotangents_belong_together(ask: Ask) -> None:
    a, (cotangent, tangent, _) = media()[0], changes()
    pulled = ask("vjp", "darcy", a, cotangent, tolerance=1e-10)
    pushed = ask("jvp", "darcy", a, tangent, tolerance=1e-10)
    assert np.vdot(pulled.gradient, tangent) == pytest.approx(np.vdot(cotangent, pushed.tangent), rel=1e-7)


# --- quantities


def test_quantities_have_guaranteed_half_widths(ask: Ask) -> None:
    wanted = ("mean", "outflow", "outflow.left", "outflow.left+top", "reading(0.5, 0.25)")
    found = {each.quantity: each for each in ask("quantities", "darcy", media(), wanted, source=2.0)}
    assert list(found) == list(wanted)
    for row in range(2):
        exact, a = direct(row).solve(2.0), media()[row]
        true = {
            "mean": exact.mean(),
            "outflow": 2.0,
            "outflow.left": float(np.sum(2 * a[:, 0] * exact[:, 0])),
            "reading(0.5, 0.25)": exact[63:65, 31:33].mean(),
        }
        for name, value in true.items():
            assert abs(found[name].value[row] - value) <= found[name].half_width[row] + 1e-12, name
            assert found[name].half_width[row] < 0.01 * abs(value)
    assert (found["mean"].unit, found["outflow"].unit) == ("Pa", "m^2/s")
    (sharp,) = ask("quantities", "darcy", media()[0], ["mean"], tolerance=1e-9)
    assert sharp.half_width <= 1e-9 * sharp.value
    assert abs(sharp.value - direct().solve().mean()) <= sharp.half_width + 1e-13


@pytest.mark.parametrize(
    "wanted",
    [["median"], ["outflow.north"], ["reading(2, 0.5)"], ["reading(0.5)"], [], ["outflow.left+left"]],
)
def test_what_is_no_quantity_is_refused(ask: Ask, wanted: list[str]) -> None:
    with pytest.raises(ServiceError) as refused:
        ask("quantities", "darcy", media()[0], wanted)
    assert (refused.value.status, refused.value.problem["field"]) == (422, "quantities")


# --- what is said beside


def test_certified_answers_and_refusals_are_counted(http: httpx.Client) -> None:
    http.post(f"{SOLVE}?tolerance=1e-6&method=solver", content=npy(media()[0]), headers=NPY)
    http.post(f"{SOLVE}?tolerance=1e-300", content=npy(media()[0]), headers=NPY)
    page = http.get("/metrics").text
    assert 'mno_certified_fields_total{method="solver"' in page
    assert 'reason="not-certifiable"' in page


def test_the_open_inference_protocol_knows_tolerances(http: httpx.Client) -> None:
    field = media()[0]
    given = {
        "name": "permeability",
        "datatype": "FP32",
        "shape": [SIDE, SIDE],
        "data": field.ravel().tolist(),
    }
    body = {"inputs": [given], "parameters": {"tolerance": 1e-6, "method": "hybrid"}}
    answer = http.post("/v2/models/darcy/infer", json=body)
    assert answer.status_code == 200, answer.text
    found = {each["name"]: each for each in answer.json()["outputs"]}
    assert found["pressure"]["datatype"] == "FP64"
    assert found["error_upper"]["data"][0] <= 1e-6
    pressure = np.array(found["pressure"]["data"]).reshape(SIDE, SIDE)
    assert Direct(field.astype(np.float32).astype(np.float64)).error(pressure) <= 1e-6
    refused = http.post("/v2/models/darcy/infer", json={**body, "parameters": {"tolerance": 1e-300}})
    assert refused.status_code == 409


# what a family's fields are drawn with, where it has to be said
DRAWN_WITH = {"contrast": 100.0, "correlation_length": 0.2}


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_meets_every_tolerance_or_is_refused(http: httpx.Client, family: str) -> None:
    """Answers of all families and tolerances, checked one by one by a direct solver."""
    grid, met = Grid((48, 40)), 0
    drawn = {spec.name: DRAWN_WITH[spec.name] for spec in FAMILIES[family].parameters}
    for index in range(12):
        field = STEADY_PROBLEMS["darcy"].sample(family, drawn, 11, index, grid)["permeability"]
        tolerance = 10.0 ** -(2 + index % 7)
        answer = http.post(f"{SOLVE}?tolerance={tolerance}", content=npy(field), headers=NPY)
        if answer.status_code == 409:
            assert answer.json()["type"] == "not-certifiable"
            continue
        assert answer.status_code == 200, answer.text
        met += 1
        bound = json.loads(answer.headers["Mno-Error-Estimate"])["upper"]
        exact = Direct(np.asarray(field, np.float64))
        # what the direct solver itself is wrong by
        own = 1e-11
        assert exact.error(np.load(io.BytesIO(answer.content))) <= bound + own <= tolerance + own
    assert met >= 10


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(2, 24).flatmap(
        lambda side: arrays(
            np.float64, (side, side), elements=st.floats(-12, 12), fill=st.sampled_from([0.0, -12.0, 12.0])
        )
    ),
    st.sampled_from([1e-2, 1e-5, 1e-8]),
)
def test_any_positive_field_is_answered_within_its_bound_or_refused(
    http: httpx.Client, exponents: NDArray[np.float64], tolerance: float
) -> None:
    field = 10.0**exponents
    answer = http.post(f"{SOLVE}?tolerance={tolerance}", content=npy(field), headers=NPY)
    if answer.status_code != 200:
        assert answer.status_code in (409, 422)
        assert answer.json()["type"] in ("not-certifiable", "invalid-field")
        return
    bound = json.loads(answer.headers["Mno-Error-Estimate"])["upper"]
    pressure = np.load(io.BytesIO(answer.content))
    assert bound <= tolerance
    assert np.isfinite(pressure).all()
    # elsewhere the direct solver is no judge
    if float(np.ptp(exponents)) < 6:
        assert Direct(field).error(pressure) <= bound + 1e-8

"""Whatever is sent to start a rollout, the answer is the contract's problem document."""

import asyncio
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from model_store import LoadedVersion
from problems import EVOLUTION_PROBLEMS, Grid
from service.batching.batcher import BatchRules
from service.settings import Limits
from service.workers.reference import solve_reference
from service.workers.worker import ThreadWorker

ROLLOUT = "/v1/problems/shallow_water/rollout"
NPY = {"Content-Type": "application/x-npy"}
ONES = np.ones((16, 16)).tolist()


@pytest.fixture
def http(rollout_address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=rollout_address, timeout=60) as client:
        yield client
        # whatever was sent, it keeps serving
        assert client.post(ROLLOUT, json={"state": {"h": ONES}, "steps": 1}).status_code == 200


def npy(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def bad(value: float) -> list[list[float]]:
    """Ones [16, 16], but for (3, 4)."""
    values = np.ones((16, 16))
    values[3, 4] = value
    return values.tolist()  # type: ignore[no-any-return]


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert (document["type"], document["status"]) == (slug, status)
    assert document["detail"]
    assert document["request_id"] == response.headers["X-Request-Id"]
    return document


@pytest.mark.parametrize(
    ("state", "field", "rule", "index"),
    [
        ({"h": bad(0.0)}, "h", "exclusive_minimum", [3, 4]),
        ({"h": bad(-1.0)}, "h", "exclusive_minimum", [3, 4]),
        ({"h": ONES, "hu": bad(1e60)}, "hu", "float32", [3, 4]),
        ({"h": ONES, "hu": ONES[:8]}, "h", "shape", None),
        ({"h": [ONES]}, "h", "rank", None),
        ({"h": ONES[0]}, "h", "rank", None),
        ({"h": [*ONES[:5], ONES[5][:3], *ONES[6:]]}, "h", "rectangular", [5]),
        ({"h": [*ONES[:5], [None] * 16, *ONES[6:]]}, "h", "numbers", [5, 0]),
        ({"h": [[]]}, "h", "not empty", None),
        ({"h": ONES[:9]}, "h", "grid", None),
        ({"hu": ONES}, "h", "missing", None),
        ({}, "h", "missing", None),
        ({"h": ONES, "w": ONES}, "w", "unknown", None),
        ({"h": ONES, "w" * 10**5: ONES}, "w" * 80, "unknown", None),
        ({"h": ONES, "w" * 10**5: "x"}, "w" * 80, "numbers", None),
        ({"h": ONES, "w" * 10**5: [ONES]}, "w" * 80, "rank", None),
        (ONES, "state", "missing", None),
        (None, "state", "missing", None),
    ],
)
def test_a_bad_state_names_field_rule_and_index(
    http: httpx.Client, state: Any, field: str, rule: str, index: Any
) -> None:
    document = problem(http.post(ROLLOUT, json={"state": state, "steps": 3}), 422, "invalid-field")
    assert (document["field"], document["rule"], document["index"]) == (field, rule, index)
    assert len(document["detail"]) < 1000


@pytest.mark.parametrize("option", ["walls", "model", "method"])
def test_no_option_is_quoted_at_length(http: httpx.Client, option: str) -> None:
    response = http.post(ROLLOUT, json={"state": {"h": ONES}, option: "x" * 10**5})
    assert 400 <= response.status_code < 500
    assert len(response.content) < 1000


def test_after_the_beginning_nothing_is_at_rest(http: httpx.Client) -> None:
    options = {"steps": 4, "start_step": 3}
    for state, missing in (({"h": ONES}, "hu"), ({"h": ONES, "hu": ONES}, "hv")):
        response = http.post(ROLLOUT, json={"state": state, **options})
        document = problem(response, 422, "invalid-field")
        assert (document["field"], document["rule"]) == (missing, "missing")
        assert "step 0" in document["detail"]


def test_a_momentum_too_small_for_float32_is_none(http: httpx.Client) -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 16), np.linspace(-1, 1, 16), indexing="ij")
    tail = np.exp(-300 * (x**2 + y**2))
    assert 0 < tail.min() < 1e-200
    response = http.post(ROLLOUT, json={"state": {"h": ONES, "hu": tail.tolist()}, "steps": 4})
    assert response.status_code == 200, response.text
    depth = problem(http.post(ROLLOUT, json={"state": {"h": bad(1e-40)}}), 422, "invalid-field")
    assert (depth["field"], depth["rule"], depth["index"]) == ("h", "float32", [3, 4])


def test_a_batch_is_told_to_be_sent_apart(http: httpx.Client) -> None:
    for response in (
        http.post(ROLLOUT, json={"state": {"h": [ONES, ONES]}}),
        http.post(ROLLOUT, content=npy(np.ones((2, 3, 16, 16))), headers=NPY),
    ):
        document = problem(response, 422, "invalid-field")
        assert document["rule"] == "rank"
        assert "a request for each" in document["detail"]


@pytest.mark.parametrize(
    ("array", "query", "field", "rule"),
    [
        (np.ones((16, 16)), "", "state", "rank"),
        (np.ones((2, 16, 16)), "", "state", "channels"),
        (np.ones((4, 16, 16)), "", "state", "channels"),
        (np.ones((2, 16, 16)), "fields=h", "state", "channels"),
        (np.ones((2, 16, 16)), "fields=h,h", "state", "channels"),
        (np.ones((2, 16, 16)), "fields=h,w", "w", "unknown"),
        (np.ones((2, 16, 16)), "fields=hu,hv", "h", "missing"),
        (np.full((3, 16, 16), np.nan), "", "h", "finite"),
        (np.ones((3, 16, 16), dtype=complex), "", "state", "dtype"),
        (np.ones((3, 0, 16)), "", "state", "not empty"),
    ],
)
def test_a_bad_array_is_refused(
    http: httpx.Client, array: NDArray[Any], query: str, field: str, rule: str
) -> None:
    response = http.post(f"{ROLLOUT}?{query}", content=npy(array), headers=NPY)
    document = problem(response, 422, "invalid-field")
    assert (document["field"], document["rule"]) == (field, rule)


def test_pickles_and_torn_files_are_refused_unread(http: httpx.Client) -> None:
    objects = npy(np.ones((3, 16, 16), dtype=object), allow_pickle=True)
    problem(http.post(ROLLOUT, content=objects, headers=NPY), 422, "invalid-field")
    torn = npy(np.ones((3, 16, 16)))[:-1]
    assert problem(http.post(ROLLOUT, content=torn, headers=NPY), 422, "invalid-field")["rule"] == "npy"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": -1}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"steps": "3"}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 101}, "steps"),
        ({"steps": 10**30}, "steps"),
        ({"every": 0}, "every"),
        ({"steps": 3, "every": 4}, "steps"),
        ({"steps": 3, "start_step": 3}, "steps"),
        ({"steps": 3, "start_step": -1}, "start_step"),
        ({"steps": 2**31 - 1, "start_step": 2**31, "method": "solver"}, "start_step"),
        ({"steps": 11, "start_step": 10, "every": 5}, "steps"),
        ({"method": "magic"}, "method"),
        ({"walls": "brick"}, "walls"),
        ({"walls": "periodic"}, "walls"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"model": 3}, "model"),
        ({"model": "short"}, "model"),
        ({"stepps": 3}, "stepps"),
        ({"error": "bound"}, "error"),
    ],
)
def test_a_bad_option_is_named(http: httpx.Client, options: dict[str, Any], field: str) -> None:
    response = http.post(ROLLOUT, json={"state": {"h": ONES}, **options})
    document = problem(response, 422, "invalid-field")
    assert document["field"] == field


def test_a_far_start_is_no_long_rollout(http: httpx.Client) -> None:
    options = {"steps": 5 * 10**6, "start_step": 5 * 10**6 - 2}
    response = http.post(ROLLOUT, json={"state": {"h": ONES, "hu": ONES, "hv": ONES}, **options})
    assert [json.loads(line)["step"] for line in response.text.splitlines()] == [5 * 10**6 - 1, 5 * 10**6]


@pytest.mark.parametrize("query", ["steps=x", "steps=nan", "methd=solver", "start_step=1.5", "every=-1"])
def test_a_bad_query_is_refused(http: httpx.Client, query: str) -> None:
    response = http.post(f"{ROLLOUT}?{query}", content=npy(np.ones((3, 16, 16))), headers=NPY)
    assert problem(response, 422, "invalid-field")["field"] == query.partition("=")[0]


def test_options_beside_json_go_into_the_body(http: httpx.Client) -> None:
    problem(http.post(f"{ROLLOUT}?steps=3", json={"state": {"h": ONES}}), 422, "invalid-field")


def test_each_problem_is_told_its_own_operation(http: httpx.Client) -> None:
    steady = http.post("/v1/problems/darcy/rollout", json={"state": {"permeability": ONES}})
    assert "solve" in problem(steady, 422, "invalid-field")["detail"]
    moving = http.post("/v1/problems/shallow_water/solve", json={"h": ONES})
    assert "rollout" in problem(moving, 422, "invalid-field")["detail"]


def test_unknown_names_are_404(http: httpx.Client) -> None:
    problem(http.post("/v1/problems/navier/rollout", json={}), 404, "unknown-problem")
    for model in ("shallow_water@9", "navier", ""):
        response = http.post(ROLLOUT, json={"state": {"h": ONES}, "model": model})
        problem(response, 404, "unknown-model")
    # a problem without any model has its reference solver
    without = http.post("/v1/problems/diffusion_reaction/rollout", json={"state": {"u": ONES, "v": ONES}})
    assert "method=solver" in problem(without, 404, "unknown-model")["detail"]


def test_what_comes_later_says_so(http: httpx.Client) -> None:
    response = http.post(ROLLOUT, json={"state": {"h": ONES}, "method": "hybrid"})
    problem(response, 501, "not-available-yet")


def test_media_types_are_those_of_the_documentation(http: httpx.Client) -> None:
    problem(
        http.post(ROLLOUT, content=b"1", headers={"Content-Type": "text/csv"}), 415, "unsupported-media-type"
    )
    for accept in ("text/csv", "application/json", "image/png"):
        response = http.post(ROLLOUT, json={"state": {"h": ONES}}, headers={"Accept": accept})
        assert "x-ndjson" in problem(response, 406, "not-acceptable")["detail"]


def test_too_much_is_413(http: httpx.Client) -> None:
    problem(http.post(ROLLOUT, content=b"x" * (2**20 + 1), headers=NPY), 413, "payload-too-large")
    problem(
        http.post(ROLLOUT, content=npy(np.ones((3, 65, 16), "f2")), headers=NPY), 413, "payload-too-large"
    )
    many = b'{"state": {"h": [' + b"[]," * 300 + b"[]]}}"
    headers = {"Content-Type": "application/json"}
    assert problem(http.post(ROLLOUT, content=many, headers=headers), 422, "invalid-field")["rule"] == "rows"


def test_a_deadline_that_cannot_be_met_is_504(http: httpx.Client) -> None:
    response = http.post(ROLLOUT, json={"state": {"h": ONES}, "timeout_ms": 0.001})
    problem(response, 504, "deadline-exceeded")


def test_a_step_that_would_take_too_long_is_refused(
    evolution_versions: tuple[LoadedVersion, ...], serve: Any, serve_with: Any
) -> None:
    async def story() -> None:
        limits = Limits(cell_steps=16 * 16)
        served = serve_with(ThreadWorker(solve_reference), evolution_versions, limits, BatchRules())
        async with (
            serve(served, limits) as address,
            httpx.AsyncClient(base_url=address, timeout=60) as client,
        ):
            request = {"state": {"h": ONES}, "steps": 1, "method": "solver"}
            assert (await client.post(ROLLOUT, json=request)).status_code == 200
            fast = {"state": {"h": ONES, "hu": bad(50.0)}, "steps": 1, "method": "solver"}
            document = problem(await client.post(ROLLOUT, json=fast), 422, "invalid-field")
            assert document["rule"] == "cost"
            assert "coarser grid" in document["detail"]

    asyncio.run(story())


def test_a_later_step_that_would_take_too_long_ends_the_stream(
    evolution_versions: tuple[LoadedVersion, ...], serve: Any, serve_with: Any
) -> None:
    async def story() -> None:
        shallow_water = EVOLUTION_PROBLEMS["shallow_water"]
        grid = Grid((16, 16), shallow_water.grid.extent, shallow_water.grid.origin)
        x = grid.coordinates()[1]
        # an almost dry half is flooded, and the water gets faster
        dam = np.where(x < 0, 300.0, 0.01) * np.ones((16, 1))
        state = {"h": dam, "hu": np.zeros((16, 16)), "hv": np.zeros((16, 16))}
        costs = [shallow_water.cell_steps(state, grid)]
        for step, after in enumerate(itertools.islice(shallow_water.frames(state, grid), 19), start=1):
            costs.append(shallow_water.cell_steps(dict(after), grid, start=step))
        most = costs[0]
        late = next(step for step, cost in enumerate(costs, start=1) if cost > most)
        limits = Limits(cell_steps=most)
        served = serve_with(ThreadWorker(solve_reference), evolution_versions, limits, BatchRules())
        async with (
            serve(served, limits) as address,
            httpx.AsyncClient(base_url=address, timeout=60) as client,
        ):
            request = {"state": {"h": dam.tolist()}, "steps": 20, "method": "solver"}
            response = await client.post(ROLLOUT, json=request)
            *frames, failure = [json.loads(line) for line in response.text.splitlines()]
        assert [frame["step"] for frame in frames] == list(range(1, late))
        assert (failure["error"]["status"], failure["error"]["rule"]) == (422, "cost")
        assert f"step {late} " in failure["error"]["detail"]

    asyncio.run(story())


def test_a_state_that_no_solver_can_step_is_refused_at_once(http: httpx.Client) -> None:
    fast = {"h": ONES, "hu": bad(1e12)}
    response = http.post(ROLLOUT, json={"state": fast, "steps": 3, "method": "solver"})
    document = problem(response, 422, "invalid-field")
    assert document["rule"] == "diverged"
    assert "step 1" in document["detail"]
    assert "method=solver" not in document["detail"]

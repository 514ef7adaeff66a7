"""Every named operator through the store and the service: what is published is what is loaded and served."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from service_thread import running_service
from small_models import small_card

from model_store import Card, Store, open_store
from operators import (
    AnySurrogate,
    EvolutionSurrogate,
    OperatorConfig,
    Surrogate,
    evolves,
    surrogate_from_config,
)
from operators.presets import PRESETS, Task
from service.client import Client
from service.serve import Service
from service.settings import InvalidSettings, Settings

# of both kinds; the operators of the peers' convolutions coarsen it twice
GRID = (16, 24)
# neither the one that the versions are tested on, nor one that can be coarsened
OTHER_GRID = (18, 24)
TASKS = {
    "darcy": Task(spacing=1 / 16),
    # a rollout starts from one frame
    "shallow_water": Task(fields=3, history=1, frames=4, walls="outflow", spacing=5 / 16),
}
EVERY = [(name, problem) for problem in TASKS for name in PRESETS]
EXTENT = {"darcy": (1.0, 1.0), "shallow_water": (5.0, 5.0)}

Small = Callable[[str, Task], OperatorConfig]


def card(operator: OperatorConfig, grids: tuple[tuple[int, int], ...] = (GRID,)) -> Card:
    """Of a version that has learnt nothing."""
    evolution = evolves(operator)
    problem = "shallow_water" if evolution else "darcy"
    return small_card(operator, problem, grids=grids)


def model_of(name: str, problem: str) -> str:
    return f"{name}-{problem}"


@pytest.fixture(scope="module")
def surrogates(small_preset: Small) -> dict[str, AnySurrogate]:
    """By the names of their models, as they are before they are published."""
    torch.manual_seed(0)
    found = {
        model_of(name, problem): surrogate_from_config(small_preset(name, TASKS[problem])).eval()
        for name, problem in EVERY
    }
    for surrogate in found.values():
        if isinstance(surrogate, EvolutionSurrogate):
            # normalizers that leave nothing as it is
            surrogate.normalize([1.0, 0.1, -0.1], [0.5, 0.2, 0.3])
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, surrogates: dict[str, AnySurrogate]) -> Store:
    store = open_store(f"file:{tmp_path_factory.mktemp('presets') / 'store'}")
    for model, surrogate in surrogates.items():
        store.publish(model, surrogate.state_dict(), card(surrogate.operator.config))
    return store


def settings(store: Store) -> Settings:
    return Settings(
        store=store.url,
        models=tuple(store.models()),
        http_port=0,
        grpc=False,
        processes="none",
        threads=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    """One server for all of them."""
    with running_service(settings(store)) as (addresses, _):
        yield addresses.http


@pytest.fixture(scope="module")
def fields() -> NDArray[np.float32]:
    """Permeabilities [2 y x]."""
    return np.random.default_rng(0).lognormal(size=(2, *GRID)).astype(np.float32)


@pytest.fixture(scope="module")
def state() -> NDArray[np.float32]:
    """Water that moves (h, hu, hv) [3 y x]."""
    rng = np.random.default_rng(1)
    return np.concatenate([rng.uniform(1, 2, (1, *GRID)), rng.normal(0, 0.1, (2, *GRID))]).astype(np.float32)


def solved(surrogate: AnySurrogate, fields: NDArray[np.float32], source: float) -> NDArray[np.float32]:
    """What a steady surrogate says when it is called [batch y x]."""
    assert isinstance(surrogate, Surrogate)
    with torch.inference_mode():
        answer = surrogate(torch.from_numpy(fields)[:, None], torch.full((len(fields),), source))
    return np.asarray(answer[:, 0])


def rolled_out(surrogate: AnySurrogate, state: NDArray[np.float32], blocks: int) -> NDArray[np.float32]:
    """The frames of an evolution surrogate's own rollout [frame 3 y x]."""
    assert isinstance(surrogate, EvolutionSurrogate)
    with torch.inference_mode():
        following = surrogate.blocks(torch.from_numpy(state)[None, None], EXTENT["shallow_water"])
        return np.concatenate([np.asarray(next(following)[0]) for _ in range(blocks)])


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    # nothing that is constant, or that has grown out of all bounds, would show a difference
    assert 1e-4 < expected.std() < 1e4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "problem"), EVERY)
def test_what_is_loaded_is_what_was_published(
    name: str,
    problem: str,
    store: Store,
    surrogates: dict[str, AnySurrogate],
    fields: NDArray[np.float32],
    state: NDArray[np.float32],
) -> None:
    model = model_of(name, problem)
    published, loaded = surrogates[model], store.load(model, 1)
    assert loaded.surrogate.operator.config == loaded.card.operator == published.operator.config
    if problem == "darcy":
        answers = [solved(each, fields, 1.0) for each in (loaded.surrogate, published)]
    else:
        answers = [rolled_out(each, state, 1) for each in (loaded.surrogate, published)]
    assert np.array_equal(*answers)


@pytest.mark.parametrize("name", PRESETS)
def test_a_solution_over_http_is_that_of_the_surrogate(
    name: str, address: str, surrogates: dict[str, AnySurrogate], fields: NDArray[np.float32]
) -> None:
    model = model_of(name, "darcy")
    with Client(address) as client:
        answer = client.solve("darcy", fields, model=model, source=2.5, method="surrogate")
    assert (answer.model, answer.method) == (f"{model}@1", "surrogate")
    assert_close(answer.pressure, solved(surrogates[model], fields, 2.5))


@pytest.mark.parametrize("name", PRESETS)
def test_a_rollout_over_http_is_that_of_the_surrogate(
    name: str, address: str, surrogates: dict[str, AnySurrogate], state: NDArray[np.float32]
) -> None:
    model = model_of(name, "shallow_water")
    # the second block starts from the end of the first
    expected = rolled_out(surrogates[model], state, 2)
    with Client(address) as client:
        frames = list(client.rollout("shallow_water", state, steps=len(expected), model=model))
    assert {frame.model for frame in frames} == {f"{model}@1"}
    assert_close(np.stack([np.stack([*frame.fields.values()]) for frame in frames]), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_another_grid_is_refused_by_the_contract(name: str, address: str) -> None:
    ones = np.ones(OTHER_GRID).tolist()
    with httpx.Client(base_url=f"{address}/v1/problems", timeout=60) as client:
        solving = {"permeability": ones, "model": model_of(name, "darcy")}
        rolling = {"state": {"h": ones}, "steps": 1, "model": model_of(name, "shallow_water")}
        for path, body, field in (
            ("darcy/solve", solving, "permeability"),
            ("shallow_water/rollout", rolling, "h"),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 422, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert (problem["type"], problem["field"], problem["rule"]) == ("invalid-field", field, "grid")
            assert "16x24, got 18x24" in problem["detail"]


@pytest.mark.parametrize("problem", TASKS)
def test_a_card_that_promises_what_its_operator_refuses_is_found_at_the_start(
    problem: str, small_preset: Small, tmp_path: Path
) -> None:
    operator = small_preset("unet", TASKS[problem])
    store = open_store(f"file:{tmp_path / 'store'}")
    store.publish("unet", surrogate_from_config(operator).state_dict(), card(operator, (GRID, OTHER_GRID)))
    with pytest.raises(InvalidSettings, match=r"unet@1 .*multiples of 4 cells, got \(18, 24\).*leave it out"):
        Service(settings(store)).run(lambda *_: None)

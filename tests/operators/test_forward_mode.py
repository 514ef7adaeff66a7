"""Tangents of every operator: against central differences in float64, and against its gradients."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_operators import SMALL
from torch import Tensor

from operators import AnySurrogate, EvolutionSurrogate, OperatorConfig, surrogate_from_config
from operators.forward_mode import has_tangent, push_forward
from operators.mixers import softmax
from operators.presets import PRESETS, Task
from operators.scan import BACKENDS, Direction, selective_scan

SIDE = 16
EXTENT = (1.0, 1.0)
TASKS = {
    "steady": Task(spacing=1 / SIDE),
    "evolution": Task(fields=2, history=2, frames=3, walls="periodic", spacing=1 / SIDE),
}
EVERY = [(name, None) for name in SMALL] + [(name, kind) for kind in TASKS for name in PRESETS]
CONFIGURATIONS = [name if kind is None else f"{name}-{kind}" for name, kind in EVERY]
# along the direction: long ones cut off more and meet kinks, short ones round more
STEPS = (1e-5, 1e-6, 1e-7)

Of = Callable[[Tensor], Tensor]


def answering(surrogate: AnySurrogate) -> Of:
    """The answer as a function of the input alone."""
    if isinstance(surrogate, EvolutionSurrogate):
        return lambda given: surrogate(given, EXTENT)
    return lambda given: surrogate(given, given.new_ones(len(given)))


def draws(surrogate: AnySurrogate, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An input, no number of which is there twice, and a direction."""
    rng = np.random.default_rng(0)
    if isinstance(surrogate, EvolutionSurrogate):
        given = 0.1 * rng.normal(size=(2, surrogate.history, surrogate.operator.fields, SIDE, SIDE))
        # depths are positive
        given[:, :, 0] += 1.5
    else:
        given = np.exp(rng.normal(size=(2, 1, SIDE, SIDE)))
    return torch.from_numpy(given).to(dtype), torch.from_numpy(rng.normal(size=given.shape)).to(dtype)


@pytest.fixture(params=EVERY, ids=CONFIGURATIONS)
def config(request: pytest.FixtureRequest, small_preset: Callable[[str, Task], OperatorConfig]) -> Any:
    name, kind = request.param
    return SMALL[name] if kind is None else small_preset(name, TASKS[kind])


def surrogate_of(config: OperatorConfig, dtype: torch.dtype) -> AnySurrogate:
    torch.manual_seed(0)
    return surrogate_from_config(config).eval().requires_grad_(False).to(dtype)


def test_tangents_are_what_central_differences_come_to(config: OperatorConfig) -> None:
    surrogate = surrogate_of(config, torch.float64)
    function, (given, direction) = answering(surrogate), draws(surrogate, torch.float64)
    answer, tangent = push_forward(function, given, direction)
    with torch.no_grad():
        torch.testing.assert_close(answer, function(given), rtol=1e-9, atol=1e-12)
        quotients = [
            (function(given + step * direction) - function(given - step * direction)) / (2 * step)
            for step in STEPS
        ]
    assert tangent.norm() > 0
    assert min((tangent - each).norm() for each in quotients) < 1e-6 * tangent.norm()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_tangents_and_gradients_belong_together(
    config: OperatorConfig, dtype: torch.dtype, most: float
) -> None:
    surrogate = surrogate_of(config, dtype)
    function, (given, direction) = answering(surrogate), draws(surrogate, dtype)
    _, tangent = push_forward(function, given, direction)
    cotangent = torch.randn(tangent.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    leaf = given.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, cotangent)
    ahead, back = (
        torch.sum(one.double() * other.double())
        for one, other in ((cotangent, tangent), (gradient, direction))
    )
    assert abs(ahead - back) < most * cotangent.double().norm() * tangent.double().norm()


@pytest.mark.gpu
def test_tangents_on_a_device_are_those_on_the_host(config: OperatorConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    surrogate = surrogate_of(config, torch.float32)
    given, direction = draws(surrogate, torch.float32)
    _, expected = push_forward(answering(surrogate), given, direction)
    surrogate = surrogate.cuda()
    _, found = push_forward(answering(surrogate), given.cuda(), direction.cuda())
    assert (found.cpu() - expected).norm() < 1e-3 * expected.norm()


# --- the scan


def scanned(length: int) -> dict[str, Tensor]:
    """The tensors of a scan in all directions that its grid has."""
    rng, shape = np.random.default_rng(length), (1, 2, length)
    drawn = {
        "x": rng.normal(size=(1, length, 3)),
        "dt": rng.normal(size=(*shape, 3)),
        "A": -rng.uniform(0.1, 2, (2, 3, 4)),
        "B": rng.normal(size=(*shape, 4)),
        "C": rng.normal(size=(*shape, 4)),
        "D": rng.normal(size=(2, 3)),
        "z": rng.normal(size=(1, length, 3)),
        "dt_bias": rng.normal(size=(2, 3)),
    }
    return {name: torch.from_numpy(values) for name, values in drawn.items()}


OPTIONS: dict[str, Any] = {
    "forward": {"directions": (Direction.FORWARD, Direction.REVERSE)},
    "columns": {"directions": (Direction.COLUMN_MAJOR, Direction.ROW_REVERSE)},
}


@pytest.mark.parametrize("length", [1, 2, 63, 64, 100])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("moving", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_a_scan_moves_with_each_of_its_tensors(moving: str, options: str, length: int) -> None:
    if moving == "A" and length == 1:
        pytest.skip("no state is there to decay")
    tensors, chosen = scanned(length), OPTIONS[options] | {"grid": (1, length)}
    direction = torch.from_numpy(np.random.default_rng(5).normal(size=tensors[moving].shape))

    def of(given: Tensor, backend: str | None = None) -> Tensor:
        return selective_scan(**tensors | {moving: given}, **chosen, backend=backend)

    _, tangent = push_forward(of, tensors[moving], direction)
    ahead, behind = (of(tensors[moving] + sign * 1e-5 * direction, "reference") for sign in (1, -1))
    expected = (ahead - behind) / 2e-5
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("name", [None, *BACKENDS])
def test_no_backend_loses_the_tangent(name: str | None) -> None:
    tensors = {each: values.float() for each, values in scanned(64).items()}
    options = OPTIONS["forward"]

    def of(given: Tensor) -> Tensor:
        return selective_scan(**tensors | {"x": given}, **options, backend=name)

    _, tangent = push_forward(of, tensors["x"], tensors["z"])
    # it is linear in x
    expected = selective_scan(**tensors | {"x": tensors["z"]}, **options)
    torch.testing.assert_close(tangent, expected, rtol=1e-4, atol=1e-5)


# --- the mode itself


def test_what_drops_the_tangent_is_told() -> None:
    one = torch.ones(3)
    with pytest.raises(RuntimeError, match="lost"):
        push_forward(lambda given: given.detach() + 1, one, one)
    # and the level is left
    assert torch.equal(push_forward(torch.square, 3 * one, one)[1], 6 * one)
    assert not has_tangent(one, None)


def test_it_is_there_in_inference_mode() -> None:
    seen: list[bool] = []

    def square(given: Tensor) -> Tensor:
        seen.append(has_tangent(torch.ones(1), given))
        return given * given

    given = torch.full((2,), 3.0)
    with torch.inference_mode():
        _, tangent = push_forward(square, given, torch.ones(2))
    assert seen == [True]
    assert torch.equal(tangent, 2 * given)


def test_threads_wait_for_one_another() -> None:
    found: list[Tensor] = []
    both = threading.Barrier(2)

    def work() -> None:
        both.wait()
        three, one = torch.tensor(3.0), torch.tensor(1.0)
        found.extend(push_forward(torch.square, three, one)[1] for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [float(each) for each in found] == [6.0] * 400


def test_attention_is_the_same_a_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, moved = torch.randn(4, 2, 3, 10, 4, generator=torch.Generator().manual_seed(0))
    attention = softmax.Softmax(softmax.SoftmaxConfig(heads=3), channels=12)

    def of(given: Tensor) -> Tensor:
        return attention.attend(given, k, v)

    whole = push_forward(of, q, moved)
    monkeypatch.setattr(softmax, "WEIGHTS", 3 * 2 * 3 * 10)
    parts = push_forward(of, q, moved)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(parts[0], torch.softmax(q @ k.mT / 2, -1) @ v)

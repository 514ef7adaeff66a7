"""The selective scan: every backend against the recurrence in float64, values and gradients."""

import importlib.util
import math
import os
import shutil
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import operators.scan as scan_package
from operators.scan import (
    BACKENDS,
    TABLE,
    Direction,
    InvalidScan,
    explain,
    selective_scan,
    set_default_backend,
)
from operators.scan.dispatch import MAMBA_STATES, MANY_SEQUENCES, Work
from operators.scan.mamba_ssm import MambaSsm
from operators.scan.native import library
from operators.scan.op import selective_scan_backward_op, selective_scan_op
from operators.scan.path import CHUNK
from operators.scan.triton import Triton

Inputs = dict[str, Any]

RASTER = (Direction.FORWARD, Direction.REVERSE, Direction.COLUMN_MAJOR, Direction.COLUMN_MAJOR_REVERSE)
AXIAL = (Direction.ROW_FORWARD, Direction.ROW_REVERSE, Direction.COLUMN_FORWARD, Direction.COLUMN_REVERSE)
# float32 against float64, relative to the largest value
VALUE, GRADIENT = 2e-6, 1e-5

needs_kernel = pytest.mark.skipif(library() is None, reason="the kernel was not built")


def backends_for(dtype: torch.dtype) -> list[str]:
    cpu = torch.device("cpu")
    return [name for name, backend in BACKENDS.items() if backend.refusal(cpu, dtype) is None]


FLOAT32 = backends_for(torch.float32)
FAST = [name for name in FLOAT32 if name != "reference"]


def make_inputs(
    tokens: int,
    width: int,
    states: int,
    directions: int = 1,
    batch: int = 2,
    gate: bool = True,
    seed: int = 0,
) -> Inputs:
    """Step sizes from 1e-3 to 1e-1 and A = -(1..N), as at the start of a training, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    uniform = torch.rand(directions, width, generator=generator, dtype=torch.float64)
    step = torch.exp(math.log(1e-3) + uniform * math.log(1e2))
    inputs = {
        "x": normal(batch, tokens, width),
        "dt": 0.5 * normal(batch, directions, tokens, width),
        "A": -torch.arange(1, states + 1) * torch.exp(0.1 * normal(directions, width, states)),
        "B": normal(batch, directions, tokens, states),
        "C": normal(batch, directions, tokens, states),
        "D": normal(directions, width),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
    }
    return inputs | {"z": normal(batch, tokens, width)} if gate else inputs


def leaves(inputs: Inputs, dtype: torch.dtype, device: str = "cpu") -> Inputs:
    return {name: value.to(device, dtype, copy=True).requires_grad_() for name, value in inputs.items()}


def values_and_gradients(inputs: Inputs, dtype: torch.dtype, device: str = "cpu", **options: Any) -> Inputs:
    """The output and the gradients of a fixed weighted sum of it."""
    taken = leaves(inputs, dtype, device)
    y = selective_scan(**taken, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weights.to(device, dtype)).sum().backward()
    gradients = {name: value.grad.cpu() for name, value in taken.items() if value.grad is not None}
    assert gradients.keys() == inputs.keys()
    return {"y": y.detach().cpu()} | gradients


def relative_error(value: Tensor, truth: Tensor) -> float:
    assert value.shape == truth.shape
    # what is smaller than float32's normal numbers counts as zero
    scale = max(truth.abs().max().item(), 1e-25)
    return (value.double() - truth).abs().max().item() / scale


def assert_agrees(found: Inputs, truth: Inputs) -> None:
    for name, value in found.items():
        assert relative_error(value, truth[name]) <= (VALUE if name == "y" else GRADIENT), name


def assert_matches_reference(inputs: Inputs, backend: str, **options: Any) -> None:
    truth = values_and_gradients(inputs, torch.float64, backend="reference", **options)
    assert_agrees(values_and_gradients(inputs, torch.float32, backend=backend, **options), truth)


# --- the truth itself


def dense_kernel_scan(inputs: Inputs) -> np.ndarray[Any, Any]:
    """y_i = sum_(j<=i) C_i exp(A sum_(j<k<=i) dt_k) B_j dt_j x_j + D x_i, by a sum over all pairs."""
    x, dt, A, B, C, D, bias = (inputs[n].numpy() for n in ("x", "dt", "A", "B", "C", "D", "dt_bias"))
    step = np.logaddexp(0, dt[:, 0] + bias[0])
    y = D[0] * x
    for i in range(x.shape[1]):
        for j in range(i + 1):
            decay = np.exp(A[0] * step[:, j + 1 : i + 1].sum(1)[..., None])
            y[:, i] += np.einsum("bn,bdn,bn,bd->bd", C[:, 0, i], decay, B[:, 0, j], step[:, j] * x[:, j])
    return y


@pytest.mark.parametrize("backend", backends_for(torch.float64))
def test_is_the_sum_over_all_earlier_tokens(backend: str) -> None:
    inputs = make_inputs(tokens=9, width=3, states=2, gate=False)
    np.testing.assert_allclose(
        selective_scan(**inputs, backend=backend), dense_kernel_scan(inputs), rtol=1e-12
    )


@pytest.mark.parametrize("backend", backends_for(torch.float64))
@pytest.mark.parametrize("directions", [(0, 1), AXIAL[:2]])
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")])
def test_gradients_are_those_of_finite_differences(
    backend: str, directions: tuple[int, ...], absent: tuple[str, ...]
) -> None:
    inputs = make_inputs(tokens=6, width=3, states=2, directions=len(directions))
    taken = leaves({n: v for n, v in inputs.items() if n not in absent}, torch.float64)

    def scan(*values: Tensor) -> Tensor:
        named = dict(zip(taken, values, strict=True))
        return selective_scan(**named, directions=directions, grid=(2, 3), backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(taken.values()), fast_mode=True)


def test_gradients_cross_chunks() -> None:
    inputs = leaves(make_inputs(tokens=2 * CHUNK + 3, width=2, states=2, batch=1), torch.float64)

    def scan(*values: Tensor) -> Tensor:
        return selective_scan(**dict(zip(inputs, values, strict=True)), backend="torch")

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()), fast_mode=True)


# --- every backend against the truth


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65, 100])
def test_lengths(backend: str, tokens: int) -> None:
    assert_matches_reference(make_inputs(tokens, 17, 3, 2), backend, directions=(0, 1))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("width", "states"), [(1, 1), (3, 3), (16, 4), (16, 8), (17, 16), (40, 12), (128, 16), (16, 64)]
)
def test_widths_and_states(backend: str, width: int, states: int) -> None:
    assert_matches_reference(make_inputs(70, width, states), backend)
    assert_matches_reference(make_inputs(70, width, states, gate=False), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("directions", [*[(k,) for k in Direction], RASTER, AXIAL, (0, 5, 2, 7), (4, 4)])
@pytest.mark.parametrize("grid", [(5, 7), (1, 9), (70, 2), (3, 66)])
def test_directions(backend: str, directions: tuple[int, ...], grid: tuple[int, int]) -> None:
    inputs = make_inputs(grid[0] * grid[1], 18, 5, len(directions))
    assert_matches_reference(inputs, backend, directions=directions, grid=grid)


@pytest.mark.parametrize("backend", FAST)
def test_long_sequences(backend: str) -> None:
    assert_matches_reference(make_inputs(1000, 16, 16, batch=1), backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FAST)
def test_longest_sequence(backend: str) -> None:
    assert_matches_reference(make_inputs(16384, 16, 16, batch=1), backend)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_batches(backend: str, batch: int) -> None:
    assert_matches_reference(make_inputs(20, 80, 8, 2, batch=batch), backend, directions=(0, 1))


@pytest.mark.parametrize("backend", FAST)
def test_plain_step_sizes(backend: str) -> None:
    inputs = make_inputs(70, 17, 4)
    inputs["dt"] = inputs["dt"].abs() / 10
    del inputs["dt_bias"], inputs["D"]
    assert_matches_reference(inputs, backend, dt_softplus=False)


@pytest.mark.parametrize("backend", FAST)
def test_any_strides(backend: str) -> None:
    inputs = make_inputs(70, 18, 5, 2)
    straight = values_and_gradients(inputs, torch.float64, directions=(0, 1), backend="reference")
    # channel before token, as other libraries have it; every second element; one B for both directions
    views = dict(inputs)
    for name in ("x", "dt", "z", "B", "C"):
        views[name] = inputs[name].mT.contiguous().mT
    views["x"] = torch.stack([inputs["x"], inputs["x"]], -1)[..., 0]
    taken = {name: value.float().requires_grad_() for name, value in views.items()}
    assert taken["dt"].stride(-1) != 1
    y = selective_scan(**taken, directions=(0, 1), backend=backend)
    assert relative_error(y.detach(), straight["y"]) <= VALUE
    # the gradient of a sum is an expanded scalar
    y.sum().backward()
    expanded = leaves(inputs, torch.float64)
    selective_scan(**expanded, directions=(0, 1), backend="reference").sum().backward()
    for name, value in taken.items():
        assert value.grad is not None
        truth = expanded[name].grad
        assert truth is not None
        assert relative_error(value.grad, truth) <= GRADIENT, name


@pytest.mark.parametrize("backend", FAST)
def test_expanded_inputs(backend: str) -> None:
    inputs = make_inputs(20, 16, 4, 2)
    inputs["B"] = inputs["B"][:, :1].expand(-1, 2, -1, -1)
    truth = selective_scan(**inputs, directions=(0, 1), backend="reference")
    y = selective_scan(**{n: v.float() for n, v in inputs.items()}, directions=(0, 1), backend=backend)
    assert relative_error(y, truth) <= VALUE


def test_a_backward_pass_that_forward_did_not_expect() -> None:
    inputs = make_inputs(2 * CHUNK + 3, 17, 3)
    truth = values_and_gradients(inputs, torch.float64, backend="reference")
    for backend in FAST:
        named = {n: v.float() for n, v in inputs.items()}
        tensors = [named[n] for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
        weights = torch.randn(
            truth["y"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        set_default_backend(backend)
        try:
            gradients = selective_scan_backward_op(
                weights.float(), *tensors, torch.empty(2, 0, 3, 17), True, [0], []
            )
        finally:
            set_default_backend(None)
        for name, gradient in zip(("x", "dt", "A", "B", "C", "D", "z", "dt_bias"), gradients, strict=True):
            assert relative_error(gradient, truth[name]) <= GRADIENT, (backend, name)


# --- extremes


EXTREMES: Mapping[str, Callable[[Inputs], None]] = {
    "large steps": lambda i: i["dt"].mul_(40),
    "huge and tiny steps": lambda i: i["dt"].copy_(torch.where(i["dt"] > 0, 100.0, -100.0)),
    "a step beyond all bounds": lambda i: i["dt"][:, :, 5].fill_(1e30),
    "no decay": lambda i: i["A"].zero_(),
    "decay at once": lambda i: i["A"].fill_(-1e6),
}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes(backend: str, extreme: str) -> None:
    inputs = make_inputs(130, 17, 4, batch=1)
    EXTREMES[extreme](inputs)
    # a sum over 1e30 has no digits to spare for the others: compare y alone there
    if extreme == "a step beyond all bounds":
        truth = selective_scan(**inputs, backend="reference")
        y = selective_scan(**{n: v.float() for n, v in inputs.items()}, backend=backend)
        assert y.isfinite().all()
        assert relative_error(y, truth) <= VALUE
    else:
        assert_matches_reference(inputs, backend)


@needs_kernel
def test_growth_overflows_to_infinity() -> None:
    inputs = {n: v.float() for n, v in make_inputs(200, 3, 2, gate=False).items()}
    inputs["A"] = inputs["A"].abs() * 100
    expected = selective_scan(**inputs, backend="reference").isfinite()
    assert not expected.all()
    assert torch.equal(selective_scan(**inputs, backend="cpu").isfinite(), expected)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "z"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_spreads_as_in_the_recurrence(backend: str, name: str, bad: float) -> None:
    inputs = {n: v.float() for n, v in make_inputs(70, 18, 3).items()}
    inputs[name][1, ..., 30, 2] = bad
    expected = selective_scan(**inputs, backend="reference").isfinite()
    y = selective_scan(**inputs, backend=backend)
    assert torch.equal(y.isfinite(), expected)
    assert expected[0].all()
    assert not expected[1].all()


# --- what a direction means


@pytest.mark.parametrize("backend", FLOAT32)
def test_reverse_is_the_scan_of_the_flipped_sequence(backend: str) -> None:
    inputs = {n: v.float() for n, v in make_inputs(100, 17, 3).items()}
    flipped = inputs | {n: inputs[n].flip(-2) for n in ("x", "dt", "B", "C", "z")}
    y = selective_scan(**inputs, directions=[Direction.REVERSE], backend=backend)
    torch.testing.assert_close(y, selective_scan(**flipped, backend=backend).flip(1))


@pytest.mark.parametrize("backend", FLOAT32)
@pytest.mark.parametrize("turn", [0, 1])
def test_column_major_is_the_scan_of_the_transposed_grid(backend: str, turn: int) -> None:
    height, width = 6, 5
    inputs = {n: v.float() for n, v in make_inputs(height * width, 4, 3).items()}

    def transpose(tensor: Tensor, rows: int, columns: int) -> Tensor:
        return tensor.unflatten(-2, (rows, columns)).transpose(-3, -2).flatten(-3, -2)

    turned = inputs | {n: transpose(inputs[n], height, width) for n in ("x", "dt", "B", "C", "z")}
    y = selective_scan(
        **inputs, directions=[Direction.COLUMN_MAJOR + turn], grid=(height, width), backend=backend
    )
    expected = transpose(selective_scan(**turned, directions=[turn], backend=backend), width, height)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("backend", FLOAT32)
@pytest.mark.parametrize("direction", AXIAL)
def test_axial_directions_scan_each_line_alone(backend: str, direction: Direction) -> None:
    height, width = 4, 70
    inputs = make_inputs(height * width, 17, 3)
    y = selective_scan(
        **{n: v.float() for n, v in inputs.items()},
        directions=[direction],
        grid=(height, width),
        backend=backend,
    )
    along_row = direction in (Direction.ROW_FORWARD, Direction.ROW_REVERSE)
    turn = Direction.REVERSE if direction % 2 else Direction.FORWARD
    for line in range(height if along_row else width):
        tokens = slice(line * width, (line + 1) * width) if along_row else slice(line, None, width)
        alone = inputs | {n: inputs[n][..., tokens, :] for n in ("x", "dt", "B", "C", "z")}
        expected = selective_scan(**alone, directions=[turn], backend="reference")
        assert relative_error(y[:, tokens], expected) <= VALUE


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("cut", [1, 30, CHUNK, 90])
def test_a_sequence_can_be_continued_from_its_last_state(backend: str, cut: int) -> None:
    inputs = {n: v.float() for n, v in make_inputs(150, 17, 3, gate=False).items()}
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")

    def run(part: slice) -> tuple[Tensor, Tensor]:
        taken = inputs | {n: inputs[n][..., part, :] for n in ("x", "dt", "B", "C")}
        y, _, last = selective_scan_op(*[taken.get(n) for n in names], True, [0], [], False)
        return y, last[:, 0]

    set_default_backend(backend)
    try:
        whole, (head, state), (tail, _) = run(slice(None))[0], run(slice(cut)), run(slice(cut, None))
    finally:
        set_default_backend(None)
    step = torch.nn.functional.softplus(inputs["dt"][:, 0, cut:] + inputs["dt_bias"][0]).cumsum(1)
    carried = torch.exp(step[..., None] * inputs["A"][0]) * state[:, None]
    tail = tail + (carried * inputs["C"][:, 0, cut:, None]).sum(-1)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=1e-5, atol=1e-5)


# --- the native kernel


@pytest.fixture
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    loaded = library()
    if loaded is not None:
        loaded.force_isa(None)


@needs_kernel
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("isa", library().isas if library() else [])  # type: ignore[union-attr]
@pytest.mark.parametrize(
    ("width", "states", "grid"), [(1, 1, (3, 3)), (18, 5, (5, 70)), (48, 16, (9, 9)), (5, 8, (4, 4))]
)
def test_instruction_sets(isa: str, width: int, states: int, grid: tuple[int, int]) -> None:
    loaded = library()
    assert loaded is not None
    loaded.force_isa(isa)
    directions = (*RASTER, *AXIAL)
    inputs = make_inputs(grid[0] * grid[1], width, states, len(directions))
    assert_matches_reference(inputs, "cpu", directions=directions, grid=grid)


@needs_kernel
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("isa", library().isas if library() else [])  # type: ignore[union-attr]
def test_elementary_functions_of_each_instruction_set(isa: str) -> None:
    loaded = library()
    assert loaded is not None
    loaded.force_isa(isa)
    v = torch.linspace(-80, 80, 4001, dtype=torch.float64)
    one = torch.ones(1, v.numel(), 1, dtype=torch.float64)
    # one token, x = B = C = 1, no decay: y is the step size, softplus(v)
    ones = torch.ones(1, 1, v.numel(), dtype=torch.float32)
    y = selective_scan(
        ones,
        v.float()[None, None, None],
        torch.zeros(1, v.numel(), 1),
        one[:, :1, None].float(),
        one[:, :1, None].float(),
        backend="cpu",
    )
    softplus = torch.log1p(torch.exp(-v.abs())) + v.clamp(min=0)
    assert ((y[0, 0].double() - softplus) / softplus).abs().max() < 1e-5
    near = v.abs() < 8
    assert ((y[0, 0].double() - softplus) / softplus)[near].abs().max() < 1e-6


@needs_kernel
@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("directions", [(0, 1), AXIAL])
def test_bits_do_not_depend_on_threads_or_runs(batch: int, directions: tuple[int, ...]) -> None:
    inputs = make_inputs(12 * 12, 200, 8, len(directions), batch=batch)
    results = []
    for threads in (1, 1, 2, 5):
        torch.set_num_threads(threads)
        results.append(
            values_and_gradients(inputs, torch.float32, directions=directions, grid=(12, 12), backend="cpu")
        )
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@needs_kernel
@pytest.mark.usefixtures("restored")
def test_several_threads_may_call_at_once() -> None:
    torch.set_num_threads(3)
    inputs = [make_inputs(100 + i, 50, 8, 2, seed=i) for i in range(4)]
    alone = [values_and_gradients(i, torch.float32, directions=(0, 1), backend="cpu") for i in inputs]
    together: dict[int, list[Inputs]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        torch.set_num_threads(3)
        for _ in range(20):
            together[i].append(
                values_and_gradients(inputs[i], torch.float32, directions=(0, 1), backend="cpu")
            )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, results in together.items():
        assert len(results) == 20
        assert all(torch.equal(alone[i][name], result[name]) for result in results for name in result)


@needs_kernel
def test_unknown_instruction_set() -> None:
    loaded = library()
    assert loaded is not None
    with pytest.raises(ValueError, match="generic, not altivec"):
        loaded.force_isa("altivec")


def run_python(
    code: str, folder: Path, environment: Mapping[str, str] | None = None, timeout: int = 120
) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ROOT = Path(scan_package.__file__).parents[2]


@needs_kernel
def test_works_in_a_forked_child() -> None:
    code = """
import os, torch
from operators.scan import selective_scan
torch.set_num_threads(3)
g = torch.Generator().manual_seed(0)
r = lambda *s: torch.randn(*s, generator=g)
args = r(1, 50, 200), r(1, 1, 50, 200), -r(1, 200, 8).abs(), r(1, 1, 50, 8), r(1, 1, 50, 8)
before = selective_scan(*args, backend="cpu")
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(selective_scan(*args, backend="cpu"), before) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(selective_scan(*args, backend="cpu"), before)
"""
    run_python(code, ROOT)


def test_without_the_library_it_falls_back_with_one_warning(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "kernel")
    shutil.copytree(ROOT / "operators" / "scan", tmp_path / "operators" / "scan", ignore=ignored)
    code = """
import sys, warnings, torch
from operators.scan import explain, selective_scan
for unwanted in ("triton", "numba", "mamba_ssm", "selective_scan_cuda"):
    assert unwanted not in sys.modules, unwanted
x, dt, A, B = torch.ones(1, 5, 3), torch.ones(1, 1, 5, 3), -torch.ones(1, 3, 2), torch.ones(1, 1, 5, 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert selective_scan(x, dt, A, B, B).shape == x.shape
    selective_scan(x, dt, A, B, B)
assert [w.category for w in caught] == [RuntimeWarning], caught
print(caught[0].message)
print(explain("cpu", torch.float32, 5))
"""
    warning, choice = run_python(code, tmp_path).splitlines()
    assert "C++ compiler" in warning
    assert choice.startswith("torch: ")


# --- Triton's kernels, by its interpreter


def scan_by_doubling(self: Any, inputs: Any) -> list[Any]:
    """Composes whole slices of a tile; Triton's interpreter composes number by number, in minutes."""
    columns = [np.moveaxis(tensor.handle.data, self.axis, 0) for tensor in inputs]

    def tensors(arrays: list[np.ndarray[Any, Any]]) -> list[Any]:
        pairs = zip(arrays, inputs, strict=True)
        return [self.to_tensor(np.ascontiguousarray(array), tensor.dtype) for array, tensor in pairs]

    distance = 1
    while distance < len(columns[0]):
        shifted = [np.roll(column, distance, 0) for column in columns]
        composed = self.combine_fn.fn(*tensors(shifted), *tensors(columns))
        columns = [
            np.concatenate([old[:distance], new.handle.data[distance:]])
            for old, new in zip(columns, composed, strict=True)
        ]
        distance *= 2
    return tensors([np.moveaxis(column, 0, self.axis) for column in columns])


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels run on the device")
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scan_by_doubling)
    monkeypatch.setitem(BACKENDS, "triton", Triton(interpreted=True))  # type: ignore[arg-type]


interprets = [
    pytest.mark.usefixtures("interpreted"),
    # numbers too large are the tests' own
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def for_triton(function: Callable[..., None]) -> Callable[..., None]:
    for mark in interprets:
        function = mark(function)
    return function


@for_triton
def test_kernels_agree_with_the_recurrence_both_ways_through_chunks() -> None:
    inputs = make_inputs(2 * CHUNK + 3, 3, 2, 2, batch=1)
    assert_matches_reference(inputs, "triton", directions=(0, 1))


@pytest.mark.parametrize("absent", [("D",), ("z",), ("dt_bias",), ("D", "z", "dt_bias")])
@for_triton
def test_kernels_do_without_what_is_absent(absent: tuple[str, ...]) -> None:
    inputs = {name: value for name, value in make_inputs(6, 3, 2).items() if name not in absent}
    assert_matches_reference(inputs, "triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("directions", "grid"),
    [
        *[((k,), (3, 2)) for k in Direction],
        (RASTER, (35, 2)),
        (AXIAL, (3, 5)),
        (AXIAL[:2], (2, 35)),
        (AXIAL[2:], (35, 2)),
        ((0, 5, 2, 7), (4, 3)),
        ((4, 4), (1, 9)),
        # more than one launch takes
        ((0, 1, 0, 1, 0), (1, 9)),
    ],
)
@for_triton
def test_kernels_know_all_directions(directions: tuple[int, ...], grid: tuple[int, int]) -> None:
    inputs = make_inputs(grid[0] * grid[1], 3, 2, len(directions), batch=1)
    assert_matches_reference(inputs, "triton", directions=directions, grid=grid)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65])
@for_triton
def test_kernels_at_odd_lengths(tokens: int) -> None:
    assert_matches_reference(make_inputs(tokens, 3, 1, 1, batch=2), "triton", directions=(1,))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "states"), [(1, 1), (16, 4), (17, 3), (40, 2), (130, 1)])
@for_triton
def test_kernels_at_odd_widths(width: int, states: int) -> None:
    assert_matches_reference(make_inputs(9, width, states, 2), "triton", directions=(0, 1))


@pytest.mark.slow
@for_triton
def test_kernels_hand_on_over_many_chunks() -> None:
    # more chunks than are handed on at a time
    assert_matches_reference(make_inputs(34 * CHUNK + 5, 2, 1, 1, batch=1), "triton", directions=(1,))


@for_triton
def test_kernels_take_any_strides() -> None:
    inputs = make_inputs(10, 4, 2, 2)
    truth = values_and_gradients(inputs, torch.float64, backend="reference", directions=(0, 1))
    names = ("x", "dt", "z", "B", "C")
    views = {name: inputs[name].float().mT.contiguous().mT for name in names}
    views["x"] = torch.stack([inputs["x"], inputs["x"]], -1)[..., 0].float()
    taken = {name: views.get(name, value.float()).requires_grad_() for name, value in inputs.items()}
    y = selective_scan(**taken, directions=(0, 1), backend="triton")
    assert relative_error(y.detach(), truth["y"]) <= VALUE
    # the gradient of a sum is an expanded scalar
    y.sum().backward()
    expected = leaves(inputs, torch.float64)
    selective_scan(**expected, directions=(0, 1), backend="reference").sum().backward()
    assert_agrees({n: t.grad for n, t in taken.items()}, {n: t.grad for n, t in expected.items()})


@pytest.mark.slow
@pytest.mark.parametrize("extreme", [name for name in EXTREMES if "bounds" not in name])
@for_triton
def test_kernels_at_extremes(extreme: str) -> None:
    inputs = make_inputs(40, 3, 2, batch=1)
    EXTREMES[extreme](inputs)
    assert_matches_reference(inputs, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "z"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@for_triton
def test_kernels_spread_what_is_not_a_number_as_the_recurrence_does(name: str, bad: float) -> None:
    inputs = {n: v.float() for n, v in make_inputs(70, 3, 2).items()}
    inputs[name][1, ..., 30, 1] = bad
    expected = selective_scan(**inputs, backend="reference").isfinite()
    assert torch.equal(selective_scan(**inputs, backend="triton").isfinite(), expected)


@pytest.mark.slow
@for_triton
def test_kernels_give_the_last_states_and_half_precision() -> None:
    inputs = {n: v.float() for n, v in make_inputs(35, 3, 2, 2, batch=1).items()}
    prepared = prepare_scan(inputs, [0, 1])
    expected = BACKENDS["reference"].forward(prepared, save=False).last_state
    torch.testing.assert_close(BACKENDS["triton"].forward(prepared, save=False).last_state, expected)
    halves = {n: v.bfloat16() for n, v in inputs.items()}
    y = selective_scan(**halves, directions=(0, 1), backend="triton")
    assert y.dtype == torch.bfloat16
    truth = selective_scan(
        **{n: v.double() for n, v in halves.items()}, directions=(0, 1), backend="reference"
    )
    assert relative_error(y, truth) < 2e-2


@pytest.mark.slow
def test_kernels_compile_for_a_device_that_is_not_here(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from operators.scan import triton_kernels as kernels
flags = dict.fromkeys(("HAS_BIAS", "SOFTPLUS", "HAS_D", "HAS_Z", "FIRST", "LAST"), True)
values = flags | dict(KS=256, LASTS=256, REVERSED=2, RESETS=0, DIRECTIONS=2, ADJOINT=0, T=4, BD=32)
for name in ("chunk_ends", "carry", "outputs", "chunk_adjoints", "gradients"):
    kernel = getattr(kernels, name)
    constants = {a: values[a] for a in kernel.arg_names if a in values}
    types = {a: "i32" if a in kernels._SIZES else "*fp32" for a in kernel.arg_names}
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    print(name, len(compiled.asm["cubin"]))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    assert len(run_python(code, ROOT, environment, timeout=800).splitlines()) == 5


# --- mamba_ssm's kernel, by a stand-in with its arguments


def plain_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Any:
    """Sequences [batch channel token] with groups of B and C [batch group state token], token by token."""
    step = torch.nn.functional.softplus(delta + bias[:, None])
    B, C = (t.repeat_interleave(u.shape[1] // t.shape[1], 1) for t in (B, C))
    h, ys = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = torch.exp(step[..., t, None] * A) * h + (step * u)[..., t, None] * B[..., t]
        ys.append((h * C[..., t]).sum(-1) + D * u[..., t])
    return torch.stack(ys, -1), h


class StandIn(types.ModuleType):
    """What is called of ``selective_scan_cuda``, with its demands on the arguments."""

    @staticmethod
    def fwd(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, softplus: bool) -> Any:
        batch, channels, tokens = u.shape
        assert z is None
        assert softplus
        assert delta.shape == u.shape
        assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], tokens)
        assert A.shape[0] == channels == D.numel() == bias.numel()
        assert all(t.stride(-1) == 1 for t in (u, delta, B, C))
        assert u.dtype == delta.dtype == B.dtype == C.dtype
        assert A.dtype == D.dtype == bias.dtype == torch.float32
        y, last = plain_scan(u.float(), delta.float(), A, B.float(), C.float(), D, bias)
        kept = torch.zeros(batch, channels, -(-tokens // 2048), 2 * A.shape[1])
        kept[:, :, -1, 1::2] = last
        return y.to(u.dtype), kept

    @staticmethod
    def bwd(
        u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any,
        dout: Any, x: Any, out: Any, dz: Any, softplus: bool, recompute_out_z: bool,
    ) -> Any:  # fmt: skip
        assert z is out is dz is None
        assert softplus
        assert not recompute_out_z
        assert dout.shape == u.shape
        assert dout.stride(-1) == 1
        assert dout.dtype == u.dtype
        assert x.shape[:2] == u.shape[:2]
        with torch.enable_grad():
            given = [t.detach().float().requires_grad_() for t in (u, delta, A, B, C, D, bias)]
            y, _ = plain_scan(*given)
            return torch.autograd.grad(y, given, dout.float())


@pytest.mark.parametrize("directions", [(0,), RASTER, AXIAL, (0, 5, 2, 7)])
def test_mamba_ssm_is_given_what_its_kernel_takes(
    monkeypatch: pytest.MonkeyPatch, directions: tuple[int, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", StandIn("selective_scan_cuda"))
    inputs = make_inputs(5 * 7, 6, 3, len(directions))
    prepared = prepare_scan({n: v.float() for n, v in inputs.items()}, list(directions), [5, 7])
    backend = MambaSsm()
    found = backend.forward(prepared, save=True)
    expected = BACKENDS["torch"].forward(prepared, save=True)
    assert found.checkpoint.shape == expected.checkpoint.shape
    assert found.checkpoint.untyped_storage().nbytes() == 4
    torch.testing.assert_close(found.last_state, expected.last_state)
    weights = torch.randn(found.y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by = backend.backward(prepared, found.checkpoint, weights.float())
    truth = values_and_gradients(
        inputs, torch.float64, backend="reference", directions=directions, grid=(5, 7)
    )
    assert_agrees({"y": found.y} | by._asdict(), truth)


def test_mamba_ssm_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, cuda = MambaSsm(), torch.device("cuda")
    assert "CUDA, not on cpu" in str(backend.refusal(torch.device("cpu"), torch.float32))
    assert "float32, not in torch.float64" in str(backend.refusal(cuda, torch.float64))
    if importlib.util.find_spec("selective_scan_cuda") is None:
        assert "not installed" in str(backend.refusal(cuda, torch.float32))
    monkeypatch.setattr("operators.scan.mamba_ssm._is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.refusal(cuda, torch.float32) is None
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "atomically" in str(backend.refusal(cuda, torch.float32))


# --- on a device


@pytest.fixture
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


def on_device(backend: str) -> None:
    refusal = BACKENDS[backend].refusal(torch.device("cuda"), torch.float32)
    if refusal is not None:
        pytest.skip(refusal)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "mamba_ssm", "torch"])
@pytest.mark.parametrize("directions", [*[(k,) for k in Direction], RASTER[:2], RASTER, AXIAL, (0, 5, 2, 7)])
@pytest.mark.parametrize("grid", [(5, 7), (70, 2), (3, 66)])
def test_device_agrees(device: str, backend: str, directions: tuple[int, ...], grid: tuple[int, int]) -> None:
    on_device(backend)
    inputs = make_inputs(grid[0] * grid[1], 40, 5, len(directions))
    options: Any = {"directions": directions, "grid": grid}
    truth = values_and_gradients(inputs, torch.float64, backend="reference", **options)
    assert_agrees(values_and_gradients(inputs, torch.float32, device, backend=backend, **options), truth)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "mamba_ssm"])
@pytest.mark.parametrize("tokens", [1, 2, 15, 17, 63, 64, 65, 1000, 16384])
@pytest.mark.parametrize(("width", "states"), [(17, 3), (128, 16), (8, 64)])
def test_device_agrees_at_all_lengths(
    device: str, backend: str, tokens: int, width: int, states: int
) -> None:
    on_device(backend)
    inputs = make_inputs(tokens, width, states, 2, batch=1)
    truth = values_and_gradients(inputs, torch.float64, device, backend="torch", directions=(0, 1))
    found = values_and_gradients(inputs, torch.float32, device, backend=backend, directions=(0, 1))
    assert_agrees(found, truth)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "mamba_ssm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_device_in_half_precision(device: str, backend: str, dtype: torch.dtype) -> None:
    on_device(backend)
    inputs = make_inputs(70, 40, 5, 2)
    found = values_and_gradients(inputs, dtype, device, backend=backend, directions=(0, 1))
    rounded = {n: v.to(dtype).double() for n, v in inputs.items()}
    truth = values_and_gradients(rounded, torch.float64, backend="reference", directions=(0, 1))
    for name, value in found.items():
        assert relative_error(value, truth[name]) < 2e-2, name


@pytest.mark.gpu
@pytest.mark.parametrize("extreme", EXTREMES)
def test_device_at_extremes(device: str, extreme: str) -> None:
    on_device("triton")
    inputs = make_inputs(130, 17, 4, batch=1)
    EXTREMES[extreme](inputs)
    truth = values_and_gradients(inputs, torch.float64, backend="reference")
    found = values_and_gradients(inputs, torch.float32, device, backend="triton")
    assert_agrees({"y": found["y"]} if "bounds" in extreme else found, truth)


@pytest.mark.gpu
def test_device_gives_the_same_bits_again(device: str) -> None:
    on_device("triton")
    inputs = make_inputs(12 * 12, 200, 8, 4, batch=3)
    options: Any = {"directions": RASTER, "grid": (12, 12), "backend": "triton"}
    first, *others = (values_and_gradients(inputs, torch.float32, device, **options) for _ in range(4))
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


# --- the operation


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("directions", [(0, 1), AXIAL])
def test_operation_is_well_registered(save: bool, directions: tuple[int, ...]) -> None:
    inputs = leaves(make_inputs(3 * 70, 5, 3, len(directions), batch=1), torch.float32)
    inputs["D"] = inputs["D"].detach()
    tensors = [inputs[n] for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")]
    torch.library.opcheck(selective_scan_op, (*tensors, True, list(directions), [3, 70], save))


class Axial(torch.nn.Module):
    """A scan of the rows and columns of whatever grid comes."""

    def __init__(self) -> None:
        super().__init__()
        inputs = make_inputs(1, 6, 4, 4)
        self.A, self.D = (torch.nn.Parameter(inputs[name].float()) for name in ("A", "D"))

    def forward(self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        y = selective_scan(x.flatten(1, 2), dt, self.A, B, C, self.D, directions=AXIAL, grid=(height, width))
        return y.unflatten(1, (height, width))


@pytest.mark.parametrize("gradients", [False, True])
def test_exported_program_serves_other_grids(tmp_path: Path, gradients: bool) -> None:
    def example(batch: int, height: int, width: int) -> tuple[Tensor, ...]:
        inputs = make_inputs(height * width, 6, 4, 4, batch=batch)
        x = inputs["x"].unflatten(1, (height, width))
        return tuple(t.float() for t in (x, inputs["dt"], inputs["B"], inputs["C"]))

    dims = {n: torch.export.Dim(n, min=2, max=4096) for n in ("batch", "height", "width")}
    batch, tokens = dims["batch"], torch.export.Dim.AUTO
    shapes = (
        {0: batch, 1: dims["height"], 2: dims["width"]},
        {0: batch, 2: tokens},
        {0: batch, 2: tokens},
        {0: batch, 2: tokens},
    )
    model = Axial()
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(model, example(2, 8, 9), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "scan.pt2")
    loaded = torch.export.load(tmp_path / "scan.pt2").module()
    for shape in [(2, 8, 9), (3, 70, 4), (2, 5, 100)]:
        torch.testing.assert_close(loaded(*example(*shape)), model(*example(*shape)))


def test_compiled_code_keeps_the_operation() -> None:
    inputs = {n: v.float() for n, v in make_inputs(70, 5, 3).items()}

    def scan(**named: Tensor) -> Tensor:
        return selective_scan(**named) * 2

    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), scan(**inputs))


def test_autocast_scans_in_float32() -> None:
    inputs = {n: v.float() for n, v in make_inputs(70, 5, 3).items()}
    halves = inputs | {n: inputs[n].bfloat16() for n in ("x", "dt", "B", "C")}
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**halves)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, selective_scan(**{n: v.float() for n, v in halves.items()}))


@pytest.mark.parametrize("backend", FAST)
def test_half_precision_in_half_precision_out(backend: str) -> None:
    inputs = make_inputs(70, 5, 3)
    found = values_and_gradients(inputs, torch.bfloat16, backend=backend)
    rounded = {n: v.bfloat16().double() for n, v in inputs.items()}
    truth = values_and_gradients(rounded, torch.float64, backend="reference")
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        assert relative_error(value, truth[name]) < 2e-2


def test_second_derivatives_are_refused() -> None:
    inputs = leaves(make_inputs(5, 3, 2), torch.float32)
    (slope,) = torch.autograd.grad(
        selective_scan(**inputs, backend="torch").sum(), inputs["x"], create_graph=True
    )
    with pytest.raises(RuntimeError):
        slope.sum().backward()


# --- cost


class CountedNumbers(TorchDispatchMode):
    """Adds up the numbers that torch operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # views write nothing
        if not func.is_view:
            self.count += sum(
                t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)
            )
        return out


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_work_is_linear_in_the_length(backend: str) -> None:
    def work(tokens: int) -> int:
        with CountedNumbers() as counted:
            if backend == "reference":
                values_and_gradients(make_inputs(tokens, 4, 2, batch=1), torch.float32, backend=backend)
            else:
                # a dispatch mode does not look into the operation
                inputs = make_inputs(tokens, 4, 2, batch=1)
                prepared = prepare_scan(inputs)
                _, checkpoint, _ = BACKENDS["torch"].forward(prepared, save=True)
                BACKENDS["torch"].backward(prepared, checkpoint, inputs["x"])  # type: ignore[attr-defined]
        return counted.count

    assert work(4 * 256) < 4.5 * work(256)


def prepare_scan(inputs: Inputs, directions: list[int] | None = None, grid: list[int] | None = None) -> Any:
    from operators.scan.scan import prepare

    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")
    return prepare(*[inputs.get(n) for n in names], True, directions or [0], grid or [])  # type: ignore[arg-type]


# --- the choice of a backend, and bad arguments


@pytest.fixture
def automatic() -> Iterator[None]:
    yield
    set_default_backend(None)


@pytest.mark.usefixtures("automatic")
def test_choice_of_a_backend() -> None:
    assert explain("cpu", torch.float64, 256).backend == "reference"
    assert explain("cpu", torch.float64, 257).backend == "torch"
    if not torch.cuda.is_available():
        assert explain("cuda", torch.float32, 10).backend == "torch"
    assert explain("cpu", torch.float32, 10, backend="reference").backend == "reference"
    set_default_backend("torch")
    assert explain("cpu", torch.float32, 10).backend == "torch"


@pytest.mark.parametrize(
    ("work", "backends"),
    [
        (Work(torch.device("cuda"), torch.float32, short=True), ["triton", "mamba_ssm", "torch"]),
        (
            Work(torch.device("cuda"), torch.bfloat16, short=False, many=True),
            ["mamba_ssm", "triton", "mamba_ssm", "torch"],
        ),
        (Work(torch.device("cuda"), torch.float32, short=True, many=True, large=True), ["triton", "torch"]),
        (Work(torch.device("cuda"), torch.float64, short=False), ["torch"]),
        (Work(torch.device("cpu"), torch.float32, short=True, many=True), ["cpu", "torch"]),
        (Work(torch.device("cpu"), torch.float64, short=True), ["reference", "torch"]),
        (Work(torch.device("meta"), torch.float32, short=True), ["torch"]),
    ],
)
def test_table_of_backends(work: Work, backends: list[str]) -> None:
    assert [row.backend for row in TABLE if row.suits(work)] == backends


def test_choice_goes_by_size_and_says_what_was_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("operators.scan.triton", "operators.scan.mamba_ssm"):
        monkeypatch.setattr(f"{name}._is_installed", lambda: True)
    monkeypatch.setattr("operators.scan.triton._device_refusal", lambda device: None)  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scan_package.dispatch._from_table.cache_clear()
    try:
        few = explain("cuda", torch.float32, 999)
        many = explain("cuda", torch.float32, 999, sequences=MANY_SEQUENCES)
        large = explain("cuda", torch.float32, 999, sequences=MANY_SEQUENCES, states=MAMBA_STATES + 1)
        assert [choice.backend for choice in (few, many, large)] == ["triton", "mamba_ssm", "triton"]
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        steady = explain("cuda", torch.float32, 999, sequences=MANY_SEQUENCES)
        assert steady.backend == "triton"
        assert "not mamba_ssm: deterministic" in steady.reason
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
        with pytest.raises(ValueError, match="no more than 256 states"):
            explain("cuda", torch.float32, 999, "mamba_ssm", states=MAMBA_STATES + 1)
    finally:
        scan_package.dispatch._from_table.cache_clear()


@needs_kernel
def test_kernel_is_the_choice_for_float32() -> None:
    assert explain("cpu", torch.float32, 10).backend == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selective_scan(**{n: v.float() for n, v in make_inputs(4, 2, 2).items()})


def test_backends_that_cannot_say_so() -> None:
    inputs = make_inputs(4, 2, 2)
    with pytest.raises(ValueError, match="it computes in float32"):
        selective_scan(**inputs, backend="cpu")
    with pytest.raises(ValueError, match="it computes in float32"):
        selective_scan(**inputs, backend="triton")
    with pytest.raises(ValueError, match="it runs on CUDA, not on cpu"):
        explain("cpu", torch.float32, 4, "mamba_ssm")
    with pytest.raises(ValueError, match="there are reference"):
        selective_scan(**inputs, backend="cobol")
    with pytest.raises(ValueError, match="there are reference"):
        set_default_backend("cobol")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("dt", (2, 1, 4, 3)),
        ("A", (1, 3, 2)),
        ("B", (2, 1, 5, 2)),
        ("C", (2, 1, 4, 3)),
        ("D", (2,)),
        ("z", (2, 4, 3)),
    ],
)
@pytest.mark.parametrize("backend", FLOAT32)
def test_shapes_must_fit(name: str, shape: tuple[int, ...], backend: str) -> None:
    inputs = {n: v.float() for n, v in make_inputs(4, 2, 2).items()}
    selective_scan(**inputs, backend=backend)
    inputs[name] = torch.zeros(shape)
    with pytest.raises(InvalidScan, match="expected"):
        selective_scan(**inputs, backend=backend)


def test_grids_must_fit() -> None:
    inputs = make_inputs(12, 2, 2)
    selective_scan(**inputs, directions=[Direction.ROW_FORWARD], grid=(3, 4))
    with pytest.raises(ValueError, match="3 x 5 against 12"):
        selective_scan(**inputs, directions=[Direction.ROW_FORWARD], grid=(3, 5))
    with pytest.raises(ValueError, match="needs grid"):
        selective_scan(**inputs, directions=[Direction.COLUMN_MAJOR])
    with pytest.raises(ValueError, match="9 is not a valid Direction"):
        selective_scan(**inputs, directions=[9], grid=(3, 4))
    with pytest.raises(InvalidScan):
        selective_scan(**inputs, directions=[])

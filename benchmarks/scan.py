"""The selective scan against the best torch form, as ratios that hold on any machine.

One thread; process CPU time, which other work on the machine disturbs least; all candidates of a comparison
in turn, round after round; medians. A shape is (batch, channels, states, tokens). With a CUDA device also its
backends, between events of the device and beside the time that their bytes take.
"""

import math
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor

from operators.scan import BACKENDS, Direction, selective_scan
from operators.scan.native import library

Run = Callable[[], object]
Inputs = dict[str, Any]

AXIAL = (Direction.ROW_FORWARD, Direction.ROW_REVERSE, Direction.COLUMN_FORWARD, Direction.COLUMN_REVERSE)
EXP_BLOCK = 32768


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan, and how often it is measured."""

    name: str
    batch: int
    channels: int
    states: int
    tokens: int
    rounds: int

    @property
    def numbers(self) -> int:
        """How many decays are computed."""
        return self.batch * self.channels * self.states * self.tokens


S0 = Shape("S0", 1, 128, 16, 1024, 21)
S1 = Shape("S1", 8, 128, 16, 4096, 3)
S2 = Shape("S2", 1, 128, 16, 16384, 5)
SMALL = Shape("(1,16,8,16)", 1, 16, 8, 16, 501)


@dataclass(frozen=True)
class Ratio:
    """A measured number and its bound."""

    name: str
    shape: str
    value: float
    bound: float
    unit: str = ""

    @property
    def passes(self) -> bool:
        """Whether the bound holds."""
        return self.value <= self.bound

    def __str__(self) -> str:
        verdict = "PASS" if self.passes else "FAIL"
        return f"{self.name:44} {self.shape:12} {self.value:8.3f}{self.unit:3} <= {self.bound:<5g} {verdict}"


def inputs(shape: Shape, directions: int = 1) -> Inputs:
    """Step sizes from 1e-3 to 1e-1 and A = -(1..N), as at the start of a training."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    K, batch, tokens = directions, shape.batch, shape.tokens
    channels, states = shape.channels, shape.states
    step = torch.exp(math.log(1e-3) + torch.rand(K, channels, generator=generator) * math.log(1e2))
    return {
        "x": normal(batch, tokens, channels),
        "dt": 0.5 * normal(batch, K, tokens, channels),
        "A": -torch.arange(1, states + 1) * torch.exp(0.1 * normal(K, channels, states)),
        "B": normal(batch, K, tokens, states),
        "C": normal(batch, K, tokens, states),
        "D": 1 + 0.1 * normal(K, channels),
        "dt_bias": step + torch.log(-torch.expm1(-step)),
    }


def forward(given: Inputs, **options: Any) -> Run:
    """A scan without gradients."""

    def run() -> None:
        with torch.no_grad():
            selective_scan(**given, **options)

    return run


def forward_and_backward(given: Inputs, scan: Callable[..., Tensor] = selective_scan, **options: Any) -> Run:
    """A scan and the gradients of all its inputs."""
    leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
    cotangent = torch.randn(given["x"].shape).to(given["x"].device)
    return lambda: torch.autograd.grad(scan(**leaves, **options), tuple(leaves.values()), cotangent)


def unfused(**given: Any) -> Tensor:
    """Two directions by flipping the sequence, scanning both ways as they come, flipping back and adding."""
    shared, sequences = {"x": given["x"]}, ("dt", "B", "C")
    there = {name: value[:, :1] for name, value in given.items() if name in sequences}
    back = {name: value[:, 1:].flip(2) for name, value in given.items() if name in sequences}
    weights = {name: value for name, value in given.items() if name in ("A", "D", "dt_bias")}
    first = selective_scan(**shared, **there, **{name: value[:1] for name, value in weights.items()})
    flipped = {"x": given["x"].flip(1)}
    second = selective_scan(**flipped, **back, **{name: value[1:] for name, value in weights.items()})
    return first + second.flip(1)


def exponentials(numbers: int) -> Run:
    """As many exponentials as the scan has decays, on data that stays in the cache."""
    block, result = -torch.rand(EXP_BLOCK), torch.empty(EXP_BLOCK)

    def run() -> None:
        for _ in range(numbers // EXP_BLOCK):
            torch.exp(block, out=result)

    return run


def medians(
    candidates: Mapping[str, Run], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds of each candidate; the candidates take turns, after a first turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = clock()
            run()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare_with_torch(shape: Shape, wide: bool) -> Iterator[Ratio]:
    """The kernel against the torch forms; ``wide``: 512-bit registers, which have the sharper bounds."""
    given = inputs(shape)
    found = medians(
        {
            "kernel": forward(given, backend="cpu"),
            "torch": forward(given, backend="torch"),
            "reference": forward(given, backend="reference"),
            "exp": exponentials(shape.numbers),
            "kernel f+b": forward_and_backward(given, backend="cpu"),
            "torch f+b": forward_and_backward(given, backend="torch"),
        },
        shape.rounds,
    )
    click.echo(f"{shape.name}: " + ", ".join(f"{name} {1e3 * s:.4g} ms" for name, s in found.items()))
    best = min(found["torch"], found["reference"])
    yield Ratio("forward / best torch form", shape.name, found["kernel"] / best, 0.12 if wide else 0.15)
    slow = found["torch f+b"]
    yield Ratio("f+b / best torch form", shape.name, found["kernel f+b"] / slow, 0.12 if wide else 0.15)
    yield Ratio("forward / exp", shape.name, found["kernel"] / found["exp"], 0.8 if wide else 1.0)
    yield Ratio("f+b / forward", shape.name, found["kernel f+b"] / found["kernel"], 4.5)
    if shape is S2:
        yield Ratio("torch form / reference, forward", shape.name, found["torch"] / found["reference"], 0.4)


def compare_fusion(shape: Shape) -> Iterator[Ratio]:
    """Both directions in one operation against flip, scan, flip and add."""
    given = inputs(shape, directions=2)
    both: Inputs = {"directions": (Direction.FORWARD, Direction.REVERSE)}

    def apart() -> None:
        with torch.no_grad():
            unfused(**given)

    found = medians(
        {
            "fused": forward(given, **both),
            "apart": apart,
            "fused f+b": forward_and_backward(given, **both),
            "apart f+b": forward_and_backward(given, scan=unfused),
        },
        shape.rounds,
    )
    yield Ratio("two directions fused / apart, forward", shape.name, found["fused"] / found["apart"], 0.75)
    yield Ratio(
        "two directions fused / apart, f+b", shape.name, found["fused f+b"] / found["apart f+b"], 0.75
    )


def overhead() -> Ratio:
    """The time of a call that has next to nothing to compute."""
    seconds = medians({"call": forward(inputs(SMALL), backend="cpu")}, SMALL.rounds)["call"]
    return Ratio("call", SMALL.name, 1e6 * seconds, 60, " us")


def speed_up(shape: Shape) -> Ratio:
    """Wall time of two threads over that of one; only a quiet machine shows it."""
    run = forward(inputs(shape), backend="cpu")

    def with_threads(count: int) -> Run:
        def both() -> None:
            with threads(count):
                run()

        return both

    candidates = {"one": with_threads(1), "two": with_threads(2)}
    found = medians(candidates, 2 * shape.rounds, time.perf_counter)
    return Ratio("two threads / one, wall", shape.name, found["two"] / found["one"], 0.7)


def extra_memory(shape: Shape) -> Ratio:
    """Growth of the peak of resident memory over one f+b in a fresh process that holds the inputs."""
    code = f"import benchmarks.scan as b; b.print_extra_memory(b.{shape.name})"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return Ratio("extra memory of f+b / bytes of x", shape.name, float(done.stdout), 6)


def print_extra_memory(shape: Shape) -> None:
    """The child's part of `extra_memory`."""
    torch.set_num_threads(1)
    small = Shape("warm", 1, shape.channels, shape.states, 64, 1)
    forward_and_backward(inputs(small), backend="cpu")()
    given = inputs(shape)
    run = forward_and_backward(given, backend="cpu")
    # the peak so far is forgotten
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_memory()
    run()
    print((_peak_memory() - before) / (4 * given["x"].numel()))


def _peak_memory() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def axial_times() -> Iterator[str]:
    """The scan of the served model: rows and columns of a grid of 32 x 32, there and back."""
    for batch in (1, 16):
        for channels in (64, 96):
            shape = Shape("axial", batch, channels, 8, 1024, 15)
            given = inputs(shape, directions=4)
            options: Inputs = {"directions": AXIAL, "grid": (32, 32), "backend": "cpu"}
            runs = {"fwd": forward(given, **options), "f+b": forward_and_backward(given, **options)}
            found = medians(runs, shape.rounds)
            times = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in found.items())
            yield f"axial 32 x 32, 8 states, batch {batch}, {channels} channels: {times}"


# bytes read and written a second when an H200 copies memory, measured
DEVICE_BANDWIDTH = 4.3e12
BOTH_WAYS: Inputs = {"directions": (Direction.FORWARD, Direction.REVERSE)}


def byte_floor(given: Inputs) -> float:
    """Seconds to read every input and write y once, at an H200's rate of copying."""
    numbers = sum(value.numel() for value in given.values()) + given["x"].numel()
    return float(given["x"].element_size() * numbers / DEVICE_BANDWIDTH)


def device_medians(candidates: Mapping[str, Run], rounds: int = 21) -> dict[str, float]:
    """Seconds of each candidate between two events on the device; the candidates take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 3):
        for name, run in candidates.items():
            start, end = (cast(Any, torch.cuda).Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            # the first turns compile and fill the caches
            if turn >= 3:
                seconds[name].append(1e-3 * start.elapsed_time(end))
    return {name: statistics.median(values) for name, values in seconds.items()}


def device_ratios(shape: Shape) -> Iterator[Ratio]:
    """One direction and two, of each backend that the device has, against the byte floor and each other."""
    device = torch.device("cuda")
    for directions, options in ((1, {}), (2, BOTH_WAYS)):
        given = {name: value.to(device) for name, value in inputs(shape, directions).items()}
        runs: dict[str, Run] = {}
        for backend in ("triton", "mamba_ssm", "torch"):
            refusal = explain_refusal(device, backend)
            if refusal is not None:
                click.echo(f"{shape.name}: no {backend}: {refusal}")
                continue
            runs[backend] = forward(given, backend=backend, **options)
            runs[f"{backend} f+b"] = forward_and_backward(given, backend=backend, **options)
        found = device_medians(runs)
        times = ", ".join(f"{name} {1e6 * seconds:.1f} us" for name, seconds in found.items())
        floor = byte_floor(given)
        click.echo(f"{shape.name}, directions {directions}: {times}; byte floor {1e6 * floor:.1f} us")
        if "triton" in found and "mamba_ssm" in found:
            # one direction: the kernels; two: fusion against laying out, scanning and merging
            bound = 0.6 if directions == 2 else 0.5 if shape is S2 else 1.0
            name = f"triton / mamba_ssm, forward, directions {directions}"
            yield Ratio(name, shape.name, found["triton"] / found["mamba_ssm"], bound)


def explain_refusal(device: torch.device, backend: str) -> str | None:
    """Why a backend cannot; None if it can."""
    return BACKENDS[backend].refusal(device, torch.float32)


def device_part(quick: bool) -> list[Ratio]:
    """The part of the benchmark that needs a CUDA device."""
    if not torch.cuda.is_available():
        click.echo("no CUDA device: nothing about triton and mamba_ssm was measured")
        return []
    click.echo(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, float32")
    return [ratio for shape in ([S0] if quick else [S0, S1, S2]) for ratio in device_ratios(shape)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measurements(quick: bool, wide: bool) -> list[Callable[[], Iterator[Ratio]]]:
    """What there is to measure."""
    shapes = [S0] if quick else [S0, S1, S2]
    parts: list[Callable[[], Iterator[Ratio]]] = []
    for shape in shapes:
        parts += [partial(compare_with_torch, shape, wide), partial(compare_fusion, shape)]
    parts.append(lambda: iter([overhead()]))
    if not quick:
        parts.append(lambda: iter([speed_up(S1)]))
        if sys.platform == "linux":
            parts.append(lambda: iter([extra_memory(S1)]))
    return parts


@click.command("scan")
@click.option("--quick", is_flag=True, help="The smallest shape only.")
@click.option("--isa", help="An instruction set of the kernel in place of the best one.")
@click.pass_obj
def bench_scan(progress: Callable[..., Any], quick: bool, isa: str | None) -> None:
    """Measure the selective scan against the best torch form and against its bounds."""
    loaded = library()
    if loaded is None:
        raise click.ClickException(
            "the scan kernel was not built: install again with a C++ compiler on the path"
        )
    try:
        loaded.force_isa(isa)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--isa") from error
    click.echo(
        f"{loaded.isa}, torch {torch.__version__}, Python {platform.python_version()}, one thread, float32"
    )
    ratios: list[Ratio] = []
    with threads(1):
        for measure in progress(measurements(quick, loaded.isa == "avx512"), label="scan"):
            ratios += measure()
        for line in axial_times():
            click.echo(line)
    ratios += device_part(quick)
    for ratio in ratios:
        click.echo(str(ratio))
    failed = sum(not ratio.passes for ratio in ratios)
    if failed:
        raise click.ClickException(f"{failed} of {len(ratios)} bounds do not hold")

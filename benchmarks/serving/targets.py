"""The targets that this service is measured by, as ratios of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, final

from benchmarks.serving.results import Results, paired_ratio

__all__ = ["Verdict", "verdicts"]

# this service's route for raw arrays, and the anchor
RAW: Final = "mno-npy"
TRITON: Final = "triton-http"
BUSY: Final = 32


@final
@dataclass(frozen=True)
class Verdict:
    """A target and what was measured; ``met`` is None where a part of it was not."""

    number: str
    text: str
    measured: str
    met: bool | None

    @property
    def word(self) -> str:
        """For the table."""
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]


def verdicts(results: Results) -> list[Verdict]:
    """One row for each part of each target."""
    return [*_serving_cost(results), *_with_model(results), *_protocols(results), *_extras(results)]


def _bound(
    number: str, text: str, value: float | None, relation: Literal["<=", ">="], bound: float, unit: str = "x"
) -> Verdict:
    full = f"{text}: {relation} {bound:g}{unit}"
    if value is None:
        return Verdict(number, full, "-", None)
    met = value <= bound if relation == "<=" else value >= bound
    return Verdict(number, full, f"{value:.3g}{unit}", met)


def ratio(results: Results, quantity: str, model: str, clients: int, ours: str, theirs: str) -> float | None:
    """Ours divided by theirs, round by round."""
    cells = [results.cell(model, route, clients) for route in (ours, theirs)]
    if cells[0] is None or cells[1] is None:
        return None
    values = [
        [getattr(burst, quantity) if burst else None for burst in cell.bursts] for cell in cells if cell
    ]
    return paired_ratio(values[0], values[1])


def best_of(results: Results, model: str, clients: int, *routes: str) -> str:
    """The route with the highest rate: a peer is measured by its best."""
    cells = [cell for route in routes if (cell := results.cell(model, route, clients)) is not None]
    return max(cells, key=lambda cell: cell.median("rate")).route if cells else routes[0]


def _litserve(results: Results, model: str, clients: int) -> str:
    return best_of(results, model, clients, "litserve-base64", "litserve-form")


def _serving_cost(results: Results) -> Iterator[Verdict]:
    def null(quantity: str, ours: str, theirs: str) -> float | None:
        return ratio(results, quantity, "null", BUSY, ours, theirs)

    lit = _litserve(results, "null", BUSY)
    cpu = "null model, 32 clients, CPU a request"
    yield _bound("1", f"{cpu}, .npy / Triton HTTP", null("cpu_ms", RAW, TRITON), "<=", 0.6)
    yield _bound("1", f"{cpu}, OIP binary / Triton HTTP", null("cpu_ms", "mno-oip", TRITON), "<=", 1.0)
    yield _bound("1", f"{cpu}, .npy / LitServe", null("cpu_ms", RAW, lit), "<=", 0.10)
    rate = "null model, 32 clients, requests/s"
    yield _bound("2", f"{rate}, .npy / Triton HTTP", null("rate", RAW, TRITON), ">=", 1.5)
    yield _bound("2", f"{rate}, .npy / LitServe", null("rate", RAW, lit), ">=", 10)
    yield _bound("2", f"{rate}, .npy / BentoML", null("rate", RAW, "bentoml-base64"), ">=", 25)
    yield _bound("2", f"{rate}, .npy / Ray Serve", null("rate", RAW, "ray-raw"), ">=", 25)


def _of_raw(results: Results, clients: int, batch: int) -> float | None:
    """Requests/s divided by the fields/s of the forward alone, round by round."""
    cell = results.cell("patch", RAW, clients)
    if cell is None:
        return None
    rates = [burst.rate if burst else None for burst in cell.bursts]
    times = [results.raw_round("patch", batch, number) for number in range(len(rates))]
    return paired_ratio(rates, [1e3 * batch / time if time else None for time in times])


def _with_model(results: Results) -> Iterator[Verdict]:
    def rate(clients: int, theirs: str) -> float | None:
        return ratio(results, "rate", "patch", clients, RAW, theirs)

    busy = "real model, 32 clients, requests/s"
    yield _bound("3", f"{busy}, .npy / raw forward at 16", _of_raw(results, 32, 16), ">=", 0.85)
    yield _bound("3", f"{busy}, .npy / raw forward at 32", _of_raw(results, 32, 32), ">=", 0.60)
    peers: dict[str, tuple[str, float]] = {
        "Triton HTTP": (TRITON, 1.1),
        "LitServe": (_litserve(results, "patch", 32), 2.2),
        "BentoML": ("bentoml-base64", 3.0),
        "Tesseract": ("tesseract-base64", 6.0),
        "Ray Serve": ("ray-raw", 1.3),
    }
    for name, (route, bound) in peers.items():
        yield _bound("3", f"{busy}, .npy / {name}", rate(32, route), ">=", bound)
    eight = "real model, 8 clients"
    yield _bound("4", f"{eight}, requests/s, .npy / raw forward at 8", _of_raw(results, 8, 8), ">=", 0.70)
    yield _bound("4", f"{eight}, requests/s, .npy / Triton HTTP", rate(8, TRITON), ">=", 1.4)
    p50 = ratio(results, "p50_ms", "patch", 8, RAW, TRITON)
    yield _bound("4", f"{eight}, p50, .npy / Triton HTTP", p50, "<=", 0.7)
    alone = "real model, one client, p50"
    yield _bound(
        "5", f"{alone}, .npy - raw forward", _over_raw(results, RAW, lambda a, b: a - b), "<=", 0.6, " ms"
    )
    grpc = _over_raw(results, "mno-oip-grpc", lambda a, b: a / b)
    yield _bound("5", f"{alone}, gRPC / raw forward", grpc, "<=", 1.25)


def _over_raw(results: Results, route: str, compare: Callable[[float, float], float]) -> float | None:
    """How a lone client's p50 compares with the forward around its round, in the median."""
    cell = results.cell("patch", route, 1)
    if cell is None:
        return None
    pairs = [
        (burst.p50_ms, results.raw_round("patch", 1, number))
        for number, burst in enumerate(cell.bursts)
        if burst is not None
    ]
    values = sorted(compare(ours, raw) for ours, raw in pairs if raw is not None)
    return values[len(values) // 2] if values else None


def _protocols(results: Results) -> Iterator[Verdict]:
    cpu = "null model, 32 clients, CPU a request"
    for title, route in (("OIP gRPC", "mno-oip-grpc"), ("Solve gRPC", "mno-solve-grpc")):
        value = ratio(results, "cpu_ms", "null", BUSY, route, "triton-grpc")
        yield _bound("6", f"{cpu}, {title} / Triton gRPC", value, "<=", 1.3)
    frames = results.extras.get("Streaming", [{}])[0].get("frames/s")
    yield _bound("6", "frames of 3x128x128 float32 over gRPC, one stream", frames, ">=", 5000, "/s")
    cell = results.cell("null", "mno-json", BUSY)
    json_cpu = None if cell is None else cell.median("cpu_ms")
    yield _bound("7", f"{cpu}, JSON", json_cpu, "<=", 2.5, " ms")


def _extras(results: Results) -> Iterator[Verdict]:
    probes = [row for row in results.extras.get("Health at saturation", []) if row["server"] == "mno"]
    health = max((row["p99 ms"] for row in probes), default=None)
    yield _bound("8", "health probe, p99 with 32 clients", health, "<=", 10, " ms")
    fronts = max(results.fronts_mb, default=None)
    yield _bound("9", "memory of a front", fronts, "<=", 60, " MB")
    equal = results.extras.get("Reproducible")
    measured = "-" if equal is None else str(equal)
    met = None if equal is None else str(equal).startswith("bit-equal")
    yield Verdict("10", "reproducible=true gives the bits of a lone request under load", measured, met)

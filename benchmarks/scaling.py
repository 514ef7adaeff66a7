"""From the measured cost of a request to the machines for a rate of them, as a page.

``python -m benchmarks.scaling`` writes ``docs/scaling.md``. What is measured comes from
``docs/serving_benchmark.json`` and from constants here that name their source; what is assumed is named as
such. A rate ``r`` [1/s] of requests that keep ``t`` core-seconds busy needs ``r t / u`` cores; ``u`` is how
busy a core may be before requests wait for each other.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final, final

ROOT: Final = Path(__file__).parents[1]
MEASURED: Final = ROOT / "docs" / "serving_benchmark.json"
PAGE: Final = ROOT / "docs" / "scaling.md"

DAY: Final = 86_400.0
# a field of 128 x 128 float32, as it travels
FIELD_BYTES: Final = 128 * 128 * 4


@final
@dataclass(frozen=True)
class Costs:
    """What one request for one field of 128 x 128 costs.

    Attributes:
        serving: core-seconds of all processes but the model: parsing, queue, answer.
        model: core-seconds of the built-in Darcy model's forward, alone in its batch.
        bound: core-seconds of the guaranteed error bound.
        front: requests a second that one front has answered.
    """

    serving: float
    model: float
    bound: float
    front: float

    @property
    def compute(self) -> float:
        """Core-seconds that are neither transport nor queue."""
        return self.model + self.bound

    @property
    def whole(self) -> float:
        """Core-seconds of a request."""
        return self.serving + self.compute


@final
@dataclass(frozen=True)
class Assumptions:
    """What nobody measured here, and what is a choice.

    Attributes:
        busy: share of the time that a core or a GPU may work before requests wait for each other.
        replica_cores: limit of a pod, as in ``deploy/k8s/base/deployment.yaml``.
        gpu_seconds: of one GPU for the forward of a field in a batch of 32: a number on paper.
        network: of a node, each way [bit/s].
        models: that a replica follows.
        look_seconds: between two looks at their aliases, ``alias_poll_seconds``.
    """

    busy: float = 0.6
    replica_cores: float = 2.0
    gpu_seconds: float = 1e-3
    network: float = 10e9
    models: int = 3
    look_seconds: float = 10.0


@final
@dataclass(frozen=True)
class Needs:
    """What a rate of requests takes.

    Attributes:
        rate: requests a second.
        cores: busy or waiting, on CPUs alone.
        replicas: pods on CPUs alone.
        gpus: and pods with one each, at the assumed time.
        gpu_cores: beside the GPUs, for serving and bounds.
        bits: through the network, each way [1/s].
        nodes: whose network they fill up to the busy share.
        store_reads: of aliases, by the pods on CPUs [1/s].
        stored: bytes a day, if all answers are kept.
    """

    rate: float
    cores: float
    replicas: int
    gpus: int
    gpu_cores: float
    bits: float
    nodes: int
    store_reads: float
    stored: float


# two threads for 16.3 ms, both counted as busy throughout, and one each for the bound and the solver:
# `mno bench forward` with OMP_NUM_THREADS=2, see README.md, "What to expect" (commit 514e4d2)
MODEL_CORE_SECONDS: Final = 2 * 16.3e-3
BOUND_CORE_SECONDS: Final = 2.1e-3
SOLVER_CORE_SECONDS: Final = 2.7e-3
ROUTE, CLIENTS = "mno-npy", 32


def measured(report: Mapping[str, Any], route: str) -> Costs:
    """The costs, by a report of ``mno bench serve``: the medians of its bursts with the null model."""
    (cell,) = (
        each
        for each in report["cells"]
        if (each["model"], each["route"], each["clients"]) == ("null", route, CLIENTS)
    )
    serving = statistics.median(burst["cpu_ms"] for burst in cell["bursts"]) / 1000.0
    front = statistics.median(burst["rate"] for burst in cell["bursts"])
    return Costs(serving, MODEL_CORE_SECONDS, BOUND_CORE_SECONDS, front)


def needs(rate: float, costs: Costs, given: Assumptions) -> Needs:
    """What ``rate`` requests a second take."""
    cores = rate * costs.whole / given.busy
    replicas = ceil(cores / given.replica_cores)
    bits = 8.0 * FIELD_BYTES * rate
    return Needs(
        rate=rate,
        cores=cores,
        replicas=replicas,
        gpus=ceil(rate * given.gpu_seconds / given.busy),
        gpu_cores=rate * (costs.serving + costs.bound) / given.busy,
        bits=bits,
        nodes=ceil(bits / (given.busy * given.network)),
        store_reads=replicas * given.models / given.look_seconds,
        stored=FIELD_BYTES * rate * DAY,
    )


def ceilings(costs: Costs, given: Assumptions) -> list[tuple[str, float]]:
    """What a part of one replica, or of one node, can carry at most [1/s], the narrowest first."""
    limits = {
        f"the model, on the {given.replica_cores:g} cores of a replica": given.replica_cores / costs.whole,
        "the bound, on one core": 1.0 / costs.bound,
        "one GPU, at the assumed time": 1.0 / given.gpu_seconds,
        "one front": costs.front,
        f"a network of {given.network / 1e9:g} Gbit/s": given.network / (8.0 * FIELD_BYTES),
    }
    return sorted(limits.items(), key=lambda each: each[1])


def page(report: Mapping[str, Any], given: Assumptions) -> str:
    """``docs/scaling.md``."""
    costs, over_grpc, as_json = (measured(report, name) for name in (ROUTE, "mno-solve-grpc", "mno-json"))
    rates = {"one replica": given.busy * given.replica_cores / costs.whole, "1,000 a second": 1000.0}
    columns = {name: needs(rate, costs, given) for name, rate in rates.items()}
    columns["10⁹ a day"] = needs(1e9 / DAY, costs, given)
    million = 1e6 * costs.whole / 3600.0
    text = (Path(__file__).parent / "scaling.md").read_text("utf-8")
    return text.format(
        machine=report["about"]["machine"],
        commit=report["about"]["commit"],
        software=report["about"]["software"],
        clients=CLIENTS,
        serving=f"{1e3 * costs.serving:.2f}",
        serving_grpc=f"{1e3 * over_grpc.serving:.2f}",
        serving_json=f"{1e3 * as_json.serving:.1f}",
        solver=f"{1e3 * SOLVER_CORE_SECONDS:.1f}",
        model=f"{1e3 * costs.model:.1f}",
        bound=f"{1e3 * costs.bound:.1f}",
        whole=f"{1e3 * costs.whole:.1f}",
        share=f"{100 * costs.model / costs.whole:.0f}",
        front=f"{costs.front:,.0f}",
        memory=f"{report['memory_mb']['mno']['patch']:.0f}",
        busy=f"{100 * given.busy:.0f}",
        cores=f"{given.replica_cores:g}",
        gpu=f"{1e3 * given.gpu_seconds:g}",
        network=f"{given.network / 1e9:g}",
        models=given.models,
        look=f"{given.look_seconds:g}",
        needs=_table(columns),
        ceilings="\n".join(f"| {name} | {limit:,.0f} |" for name, limit in ceilings(costs, given)),
        million=f"{million:.1f}",
        million_busy=f"{million / given.busy:.1f}",
        million_gpu=f"{1e6 * given.gpu_seconds / given.busy / 3600.0:.2f}",
        million_gpu_cores=f"{1e6 * (costs.serving + costs.bound) / given.busy / 3600.0:.1f}",
        day=f"{columns['10⁹ a day'].cores * 24:,.0f}",
    )


def _table(columns: Mapping[str, Needs]) -> str:
    rows: Sequence[tuple[str, str, float]] = (
        ("requests a second", "rate", 1.0),
        ("cores, CPUs alone", "cores", 1.0),
        ("replicas, CPUs alone", "replicas", 1.0),
        ("GPUs (on paper), a replica each", "gpus", 1.0),
        ("cores beside the GPUs", "gpu_cores", 1.0),
        ("network, each way [Gbit/s]", "bits", 1e-9),
        ("nodes that this network takes", "nodes", 1.0),
        ("reads of the store a second", "store_reads", 1.0),
        ("answers kept [TB a day]", "stored", 1e-12),
    )
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for title, name, unit in rows:
        values = [_number(getattr(each, name) * unit) for each in columns.values()]
        lines.append(f"| {title} | {' | '.join(values)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(MEASURED.read_text("utf-8")), Assumptions()), "utf-8")


if __name__ == "__main__":
    main()

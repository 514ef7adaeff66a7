"""What the service counts, for Prometheus: ``GET /metrics``.

Each process has one :class:`Metrics`, passed in; there is no global registry. Whoever counts asks once for a
bound recorder and keeps it, so that an observation is an addition (about 0.3 us), not a look-up::

    route = metrics.route("http", "/v1/problems/{problem}/solve")   # a template, never a raw path
    route.began(); ...; route.ended("200", seconds)
    metrics.refuse("http", "overloaded")                            # the slug of the fault
    queue = metrics.queue("darcy", "3")                             # what observes one Batcher
    queue.on_queue(rows, nbytes); queue.on_batch(rows, padded, waits, seconds)
    worker = metrics.worker("darcy", "3", "cuda:0")                 # one model worker
    worker.restarted(); worker.memory(resident=..., device=...)
    metrics.restarted("front")                                      # any other process
    metrics.loaded("darcy", "ok", seconds); metrics.serve([("darcy", "3")])
    metrics.follow({("darcy", "production"): {"3": 0.95, "4": 0.05}})
    body, media_type = metrics.render(accept_header)

A recorder belongs to the thread that writes it (the event loop's); reading from another one is harmless.
Several processes behind one port are shown as one page with :func:`merge_pages`.
"""

from __future__ import annotations

import importlib.metadata
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Generic, Literal, TypeVar, final

from prometheus_client import Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

__all__ = [
    "Description",
    "Distribution",
    "Metrics",
    "QueueMetrics",
    "RolloutMetrics",
    "RouteMetrics",
    "Value",
    "WorkerMetrics",
    "merge_pages",
]

# label sets of one metric; what comes after them is counted together, so that no client can fill the memory
MOST_CHILDREN: Final = 2000
OTHER: Final = "other"

# [s]: a lone small request takes 1 ms, a certified solution half a minute
SECONDS: Final = (*(x * 10.0**e for e in range(-4, 2) for x in (1, 2.5, 5)), 100.0)
ROWS: Final = tuple(float(2**n) for n in range(9))
RELATIVE: Final = tuple(10.0**e for e in range(-8, 1))
# loads and swaps take from a part of a second to minutes [s]
LONG_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)

Kind = Literal["counter", "gauge", "histogram"]


@final
class Value:
    """A number that is counted up or set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count ``amount`` more."""
        self.value += amount

    def set(self, value: float) -> None:
        """Be ``value`` from now on."""
        self.value = value


@final
class Distribution:
    """How often which sizes were observed, in fixed buckets."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """Sum of all observations."""
        return self._sum

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Upper bound and number of observations up to it."""
        bounds = [*self._bounds, float("inf")]
        return zip(map(floatToGoString, bounds), accumulate(self._counts), strict=True)


Recorder = TypeVar("Recorder", Value, Distribution)


@final
@dataclass(frozen=True)
class Description:
    """What a metric counts; beside its labels it has ``process``."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    text: str


@final
class Family(Generic[Recorder]):
    """One metric: its recorders by their labels."""

    def __init__(
        self, name: str, text: str, kind: Kind, labels: tuple[str, ...], bounds: Sequence[float] = ()
    ) -> None:
        self._name = name
        self._text = text
        self._kind = kind
        self._labels = labels
        self._bounds = bounds
        self._children: dict[tuple[str, ...], Recorder] = {}

    def child(self, *values: str) -> Recorder:
        """The recorder with these values of the labels; keep it, asking is slower than recording."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has labels {self._labels}, got {values}")
        if values not in self._children and len(self._children) >= MOST_CHILDREN:
            values = (OTHER,) * len(values)
        if values not in self._children:
            self._children[values] = self._new()
        return self._children[values]

    def keep(self, wanted: Iterable[tuple[str, ...]]) -> None:
        """Forget all recorders but these."""
        wanted = set(wanted)
        self._children = {values: each for values, each in self._children.items() if values in wanted}

    def children(self) -> tuple[Recorder, ...]:
        """All recorders."""
        return tuple(self._children.values())

    def forget(self, *first: str) -> None:
        """Forget the recorders whose labels begin with these values."""
        self._children = {v: each for v, each in self._children.items() if v[: len(first)] != first}

    @property
    def description(self) -> Description:
        """What it counts."""
        name = f"{self._name}_total" if self._kind == "counter" else self._name
        return Description(name, self._kind, self._labels, self._text)

    def metric(self, process: str) -> Metric:
        """As Prometheus' library wants it, with the process as one more label."""
        metric = Metric(self._name, self._text, self._kind)
        for values, recorder in list(self._children.items()):
            _sample(metric, {**dict(zip(self._labels, values, strict=True)), "process": process}, recorder)
        return metric

    def _new(self) -> Recorder:
        # the kind decides: whoever makes a family says both, see _Families
        new: Value | Distribution = Distribution(self._bounds) if self._kind == "histogram" else Value()
        return new  # type: ignore[return-value]


def _sample(metric: Metric, labels: dict[str, str], recorder: Value | Distribution) -> None:
    if isinstance(recorder, Value):
        suffix = "_total" if metric.type == "counter" else ""
        metric.add_sample(metric.name + suffix, labels, recorder.value)
        return
    count = 0
    for bound, count in recorder.buckets():
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, count)
    metric.add_sample(f"{metric.name}_count", labels, count)
    metric.add_sample(f"{metric.name}_sum", labels, recorder.sum)


@final
class _Families:
    """All metrics of a process, by kind."""

    def __init__(self) -> None:
        self.all: list[Family[Value] | Family[Distribution]] = []

    def counter(self, name: str, text: str, *labels: str) -> Family[Value]:
        return self._value(name, text, "counter", labels)

    def gauge(self, name: str, text: str, *labels: str) -> Family[Value]:
        return self._value(name, text, "gauge", labels)

    def histogram(
        self, name: str, text: str, *labels: str, bounds: Sequence[float] = SECONDS
    ) -> Family[Distribution]:
        family: Family[Distribution] = Family(name, text, "histogram", labels, bounds)
        self.all.append(family)
        return family

    def _value(self, name: str, text: str, kind: Kind, labels: tuple[str, ...]) -> Family[Value]:
        family: Family[Value] = Family(name, text, kind, labels)
        self.all.append(family)
        return family


@final
class RouteMetrics:
    """Requests of one route, or calls of one gRPC method."""

    __slots__ = ("_ended", "_family", "_in_flight", "_labels", "_seconds")

    def __init__(
        self, family: Family[Value], labels: tuple[str, str], in_flight: Value, seconds: Distribution
    ) -> None:
        self._family = family
        self._labels = labels
        self._in_flight = in_flight
        self._seconds = seconds
        self._ended: dict[str, Value] = {}

    def began(self) -> None:
        """A request came; ``ended`` follows in any case."""
        self._in_flight.value += 1

    def ended(self, status: str, seconds: float) -> None:
        """It was answered, or its client left.

        Args:
            status: the HTTP status (``200``; 499 where the client left) or the name of the gRPC code.
            seconds: from its first byte to the last one of its answer.
        """
        self._in_flight.value -= 1
        self._seconds.observe(seconds)
        ended = self._ended.get(status)
        if ended is None:
            ended = self._ended[status] = self._family.child(*self._labels, status)
        ended.value += 1


@final
class QueueMetrics:
    """What the queue in front of one worker tells; the observer that a ``Batcher`` calls."""

    def __init__(self, families: _QueueFamilies, model: str, version: str) -> None:
        self._families = families
        self._labels = (model, version)
        self._rows, self._bytes = (each.child(model, version) for each in (families.rows, families.bytes))
        self._wait, self._batch = families.wait.child(model, version), families.batch.child(model, version)
        self._computed = families.computed.child(model, version)
        self._padded = families.padded.child(model, version)
        self._compute = families.compute.child(model, version)
        self._retried = families.retried.child(model, version)
        self._failed = families.failed.child(model, version)

    def on_queue(self, rows: int, nbytes: int) -> None:
        """So much waits now."""
        self._rows.value = rows
        self._bytes.value = nbytes

    def on_batch(self, rows: int, padded: int, waits: Iterable[float], seconds: float) -> None:
        """A batch was computed.

        Args:
            rows: the samples somebody asked for.
            padded: those added to fill the batch up.
            waits: how long each part of it waited [s].
            seconds: computing time.
        """
        self._batch.observe(rows)
        self._computed.value += rows
        self._padded.value += padded
        self._compute.observe(seconds)
        observe = self._wait.observe
        for wait in waits:
            observe(wait)

    def on_refused(self, reason: str) -> None:
        """A submission was not let in: ``bytes``, ``wait``, ``deadline`` or ``share``."""
        self._families.refused.child(*self._labels, reason).add()

    def on_evicted(self, rows: int, reason: str) -> None:
        """Rows were taken out of the queue before they were computed: ``left`` or ``deadline``."""
        self._families.evicted.child(*self._labels, reason).add(rows)

    def on_retry(self, rows: int) -> None:
        """Rows wait again, alone, since their worker died."""
        self._retried.value += rows

    def on_failed(self, rows: int) -> None:
        """The computation of rows broke, or their worker died twice."""
        self._failed.value += rows


@final
class _QueueFamilies:
    def __init__(self, families: _Families) -> None:
        of = ("model", "version")
        self.rows = families.gauge("mno_queue_rows", "Samples that wait for a batch.", *of)
        self.bytes = families.gauge("mno_queue_bytes", "Input fields that wait for a batch [B].", *of)
        self.wait = families.histogram("mno_queue_seconds", "Wait for a batch [s].", *of)
        self.batch = families.histogram("mno_batch_rows", "Samples computed together.", *of, bounds=ROWS)
        self.computed = families.counter("mno_rows", "Samples computed for somebody.", *of)
        self.padded = families.counter("mno_padded_rows", "Samples computed to fill batches up.", *of)
        self.compute = families.histogram("mno_compute_seconds", "Computing time of a batch [s].", *of)
        self.refused = families.counter(
            "mno_queue_refused", "Submissions that a queue did not let in.", *of, "reason"
        )
        self.evicted = families.counter(
            "mno_evicted_rows", "Samples taken out of a queue uncomputed.", *of, "reason"
        )
        self.retried = families.counter("mno_retried_rows", "Samples queued again: their worker died.", *of)
        self.failed = families.counter("mno_failed_rows", "Samples whose computation broke.", *of)

    def forget(self, model: str, version: str) -> None:
        for family in vars(self).values():
            family.forget(model, version)


@final
class WorkerMetrics:
    """One worker process."""

    def __init__(self, families: _WorkerFamilies, labels: tuple[str, str, str]) -> None:
        self._up = families.up.child(*labels)
        self._restarts = families.restarts.child(*labels)
        self._resident = families.memory.child(*labels, "resident")
        self._device = families.memory.child(*labels, "device")
        self._peak = families.memory.child(*labels, "device_peak")

    def ready(self, up: bool) -> None:
        """It takes batches, or it does not."""
        self._up.value = float(up)

    def restarted(self) -> None:
        """It died, and another one was started in its place."""
        self._restarts.value += 1

    def memory(self, resident: int = 0, device: int = 0, device_peak: int = 0) -> None:
        """What it said it holds [B]: in RAM, and of the GPU's memory now and at most."""
        self._resident.value, self._device.value, self._peak.value = resident, device, device_peak


@final
class _WorkerFamilies:
    def __init__(self, families: _Families) -> None:
        of = ("model", "version", "device")
        self.up = families.gauge("mno_worker_up", "1: the worker takes batches.", *of)
        self.restarts = families.counter("mno_worker_restarts", "Workers started for one that died.", *of)
        self.memory = families.gauge("mno_worker_memory_bytes", "Memory of a worker [B].", *of, "kind")

    def forget(self, model: str, version: str) -> None:
        for family in (self.up, self.restarts, self.memory):
            family.forget(model, version)


@final
class RolloutMetrics:
    """Rollouts of one problem."""

    __slots__ = ("_frames", "_in_flight")

    def __init__(self, frames: Value, in_flight: Value) -> None:
        self._frames = frames
        self._in_flight = in_flight

    def began(self) -> None:
        """A stream of frames was opened; ``ended`` follows in any case."""
        self._in_flight.value += 1

    def sent(self, frames: int = 1) -> None:
        """Frames were handed to the client."""
        self._frames.value += frames

    def ended(self) -> None:
        """The stream is closed."""
        self._in_flight.value -= 1


@final
class Metrics(Collector):
    """All metrics of one process."""

    def __init__(self, process: str = "front-0") -> None:
        """``process`` is a label on everything: ``front-0``, ``supervisor``."""
        self._process = process
        self._families = families = _Families()
        self._routes: dict[tuple[str, str], RouteMetrics] = {}
        self._add_requests(families)
        self._queues = _QueueFamilies(families)
        self._workers = _WorkerFamilies(families)
        self._add_versions(families)
        self._add_rollouts(families)
        self._add_process(families)

    def _add_requests(self, families: _Families) -> None:
        of = ("protocol", "route")
        self._requests = families.counter("mno_requests", "Requests answered.", *of, "status")
        self._in_flight = families.gauge("mno_requests_in_flight", "Requests under way.", *of)
        self._seconds = families.histogram("mno_request_seconds", "First byte to last byte [s].", *of)
        self._refused = families.counter(
            "mno_refused",
            "Requests refused, those of a gRPC stream one by one, by the type of the fault.",
            "protocol",
            "reason",
        )
        self._limited = families.counter("mno_rate_limited", "Requests over a token's limits.", "client")
        self._certified = families.counter(
            "mno_certified_fields", "Fields solved within the tolerance asked for.", "problem", "method"
        )

    def _add_versions(self, families: _Families) -> None:
        self._loads = families.counter("mno_model_loads", "Versions loaded: ok, failed.", "model", "outcome")
        self._load_seconds = families.histogram(
            "mno_model_load_seconds", "Loading and warming up [s].", "model", bounds=LONG_SECONDS
        )
        self._swap_seconds = families.histogram(
            "mno_swap_seconds", "From an alias' move to its answers [s].", "model", bounds=LONG_SECONDS
        )
        self._store = families.gauge("mno_store_reachable", "1: the store answered when it was last asked.")
        self._served = families.gauge("mno_version_served", "1: loaded and answering.", "model", "version")
        self._aliases = families.gauge(
            "mno_alias_weight",
            "Share of an alias' requests that a version gets.",
            "model",
            "alias",
            "version",
        )
        self._shadow = families.histogram(
            "mno_shadow_relative_l2",
            "Relative L2 difference between a shadow's answer and the one sent.",
            *("model", "version", "shadow"),
            bounds=RELATIVE,
        )
        self._shadow_failed = families.counter(
            "mno_shadow_failed", "Answers of a shadow that broke or came too late.", "model", "shadow"
        )

    def _add_rollouts(self, families: _Families) -> None:
        self._frames = families.counter("mno_rollout_frames", "Frames handed to clients.", "problem")
        self._rollouts = families.gauge("mno_rollouts_in_flight", "Rollouts under way.", "problem")

    def _add_process(self, families: _Families) -> None:
        self._arena = families.gauge("mno_arena_bytes", "Memory shared with the workers [B].", "kind")
        self._measure_arena: Callable[[], tuple[int, int]] | None = None
        self._draining = families.gauge("mno_draining", "1: about to stop.").child()
        self._restarts = families.counter(
            "mno_process_restarts", "Processes started for one that died, by what they do.", "kind"
        )
        info = families.gauge("mno_build_info", "Always 1; the labels tell.", "version", "python")
        info.child(_version(), platform.python_version()).set(1)
        self._process_stats = CollectorRegistry()
        ProcessCollector(registry=self._process_stats)

    # --- requests (HTTP and gRPC)

    def route(self, protocol: str, route: str) -> RouteMetrics:
        """The recorder of a route, ``/v1/models/{name}``, or of a method, ``mno.v1.Solver/Solve``."""
        known = self._routes.get((protocol, route))
        if known is None:
            labels = (protocol, route)
            known = self._routes[labels] = RouteMetrics(
                self._requests, labels, self._in_flight.child(*labels), self._seconds.child(*labels)
            )
        return known

    def refuse(self, protocol: str, reason: str) -> None:
        """A request was answered with a fault; ``reason`` is its slug, such as ``overloaded``."""
        self._refused.child(protocol, reason).add()

    def limit(self, client: str) -> None:
        """A request was over the limits of its token, by the token's configured name."""
        self._limited.child(client).add()

    # --- queues and rollouts

    def certified(self, problem: str, method: str, fields: int) -> None:
        """So many fields were solved within their tolerances, guaranteed."""
        self._certified.child(problem, method).add(fields)

    def queue(self, model: str, version: str) -> QueueMetrics:
        """The observer of one queue; the reference solvers are ``("references", "")`` and so on."""
        return QueueMetrics(self._queues, model, version)

    def rollouts(self, problem: str) -> RolloutMetrics:
        """The recorder of a problem's rollouts."""
        return RolloutMetrics(self._frames.child(problem), self._rollouts.child(problem))

    def shadow(self, model: str, version: str, shadow: str) -> Distribution:
        """Relative L2 differences between ``version`` and the ``shadow`` beside it; call ``observe``."""
        return self._shadow.child(model, version, shadow)

    def shadow_failed(self, model: str, shadow: str) -> None:
        """A shadow gave no answer to compare."""
        self._shadow_failed.child(model, shadow).add()

    # --- versions and workers

    def worker(self, model: str, version: str, device: str) -> WorkerMetrics:
        """The recorder of a worker process; one of the numerics process is ``("numerics", "", "cpu")``."""
        return WorkerMetrics(self._workers, (model, version, device))

    def loaded(self, model: str, outcome: Literal["ok", "failed"], seconds: float) -> None:
        """A version was loaded and warmed up, or could not be."""
        self._loads.child(model, outcome).add()
        if outcome == "ok":
            self._load_seconds.child(model).observe(seconds)

    def swapped(self, model: str, seconds: float) -> None:
        """An alias that was moved is answered by its new version."""
        self._swap_seconds.child(model).observe(seconds)

    def store(self, *, reachable: bool) -> None:
        """The user's store was asked."""
        self._store.child().set(reachable)

    def serve(self, versions: Iterable[tuple[str, str]]) -> None:
        """Exactly these (model, version) answer now."""
        wanted = list(versions)
        self._served.keep(wanted)
        for model, version in wanted:
            self._served.child(model, version).set(1)

    def follow(self, aliases: Mapping[tuple[str, str], Mapping[str, float]]) -> None:
        """Exactly these aliases hold now: (model, alias) -> version -> its share of the requests."""
        shares = {(*alias, version): s for alias, found in aliases.items() for version, s in found.items()}
        self._aliases.keep(shares)
        for labels, share in shares.items():
            self._aliases.child(*labels).set(share)

    def forget(self, model: str, version: str) -> None:
        """A version is gone: without this, a hundred swaps would be a hundred versions on the page."""
        self._queues.forget(model, version)
        self._workers.forget(model, version)
        self._shadow.forget(model, version)

    # --- the process

    def watch_arena(self, measure: Callable[[], tuple[int, int]]) -> None:
        """Show how much of the memory shared with the workers is used, and how much there is [B]."""
        self._measure_arena = measure

    @property
    def work(self) -> float:
        """Samples computed and requests refused so far: whether it changes tells whether anybody asks."""
        counted = (*self._queues.computed.children(), *self._refused.children())
        return sum(each.value for each in counted)

    def restarted(self, kind: Literal["front", "numerics", "steward", "zygote"]) -> None:
        """A process that holds no version died, and another one is started in its place."""
        self._restarts.child(kind).add()

    def draining(self, draining: bool) -> None:
        """Whether the process is about to stop."""
        self._draining.value = float(draining)

    def descriptions(self) -> tuple[Description, ...]:
        """All metrics but those that every process has."""
        return tuple(family.description for family in self._families.all)

    def collect(self) -> Iterator[Metric]:
        """Everything, for Prometheus' library."""
        if self._measure_arena is not None:
            for kind, size in zip(("used", "size"), self._measure_arena(), strict=True):
                self._arena.child(kind).set(size)
        for family in self._families.all:
            yield family.metric(self._process)
        for metric in self._process_stats.collect():
            for sample in metric.samples:
                sample.labels["process"] = self._process
            yield metric

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """The page and its media type: OpenMetrics where ``accept`` asks for it, else Prometheus' text.

        It takes some milliseconds: an event loop leaves it to a thread.
        """
        encode, media_type = choose_encoder(accept or "")
        return encode(self), media_type


def _version() -> str:
    try:
        return importlib.metadata.version("mno")
    except importlib.metadata.PackageNotFoundError:  # a source tree
        return ""


def merge_pages(pages: Sequence[bytes]) -> bytes:
    """One page out of those of several processes: each metric is described once, with the samples of all.

    The pages are in the same format, and the label ``process`` tells their samples apart.
    """
    samples: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    name = ""
    for line in (line for page in pages for line in page.decode().splitlines()):
        if line == "# EOF":
            continue
        if not line.startswith("# "):
            samples[name].append(line)
            continue
        name = line.split(" ", 3)[2]
        samples.setdefault(name, [])
        head = heads.setdefault(name, [])
        if line not in head:
            head.append(line)
    lines = [line for name, head in heads.items() for line in (*head, *samples[name])]
    end = ["# EOF"] if pages and pages[0].endswith(b"# EOF\n") else []
    return "\n".join([*lines, *end, ""]).encode()

"""What is counted is what ``/metrics`` says, in both formats, bounded, for several processes on one page."""

import math
from collections.abc import Callable

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from service.telemetry.metrics import MOST_CHILDREN, Distribution, Metrics, merge_pages

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def samples(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Name and labels, without the process -> value."""
    found = {}
    for family in read_text(page.decode()):
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k != "process")
            found[sample.name, labels] = sample.value
    return found


def value(metrics: Metrics, name: str, /, **labels: str) -> float:
    return samples(metrics.render()[0])[name, frozenset(labels.items())]


def everything() -> Metrics:
    """Metrics of which each has been observed."""
    metrics = Metrics("front-1")
    route = metrics.route("http", "/v1/problems/{problem}/solve")
    route.began()
    route.ended("200", 0.003)
    metrics.refuse("grpc", "overloaded")
    metrics.limit("sim")
    queue = metrics.queue("darcy", "3")
    queue.on_queue(5, 500)
    queue.on_batch(3, 1, [0.001, 0.002], 0.01)
    queue.on_refused("wait")
    queue.on_evicted(2, "left")
    queue.on_retry(3)
    queue.on_failed(1)
    rollouts = metrics.rollouts("shallow_water")
    rollouts.began()
    rollouts.sent(4)
    metrics.shadow("darcy", "3", "4").observe(1e-3)
    metrics.shadow_failed("darcy", "4")
    worker = metrics.worker("darcy", "3", "cuda:0")
    worker.ready(True)
    worker.restarted()
    worker.memory(100, 200, 300)
    metrics.loaded("darcy", "ok", 2.0)
    metrics.loaded("darcy", "failed", 1.0)
    metrics.swapped("darcy", 0.3)
    metrics.serve([("darcy", "3")])
    metrics.follow({("darcy", "production"): {"3": 0.95, "4": 0.05}})
    metrics.watch_arena(lambda: (10, 20))
    metrics.draining(True)
    metrics.store(reachable=False)
    metrics.restarted("front")
    metrics.certified("darcy", "hybrid", 3)
    return metrics


def test_what_was_observed_is_on_the_page() -> None:
    metrics = everything()
    route = {"protocol": "http", "route": "/v1/problems/{problem}/solve"}
    darcy = {"model": "darcy", "version": "3"}
    assert value(metrics, "mno_requests_total", **route, status="200") == 1
    assert value(metrics, "mno_certified_fields_total", problem="darcy", method="hybrid") == 3
    assert value(metrics, "mno_requests_in_flight", **route) == 0
    assert value(metrics, "mno_request_seconds_bucket", **route, le="0.0025") == 0
    assert value(metrics, "mno_request_seconds_bucket", **route, le="0.005") == 1
    assert value(metrics, "mno_request_seconds_sum", **route) == 0.003
    assert value(metrics, "mno_refused_total", protocol="grpc", reason="overloaded") == 1
    assert value(metrics, "mno_rate_limited_total", client="sim") == 1
    assert (value(metrics, "mno_queue_rows", **darcy), value(metrics, "mno_queue_bytes", **darcy)) == (5, 500)
    assert value(metrics, "mno_queue_seconds_count", **darcy) == 2
    assert value(metrics, "mno_batch_rows_bucket", **darcy, le="2.0") == 0
    assert value(metrics, "mno_batch_rows_bucket", **darcy, le="4.0") == 1
    assert (value(metrics, "mno_rows_total", **darcy), value(metrics, "mno_padded_rows_total", **darcy)) == (
        3,
        1,
    )
    assert value(metrics, "mno_compute_seconds_sum", **darcy) == 0.01
    assert value(metrics, "mno_queue_refused_total", **darcy, reason="wait") == 1
    assert value(metrics, "mno_evicted_rows_total", **darcy, reason="left") == 2
    assert value(metrics, "mno_retried_rows_total", **darcy) == 3
    assert value(metrics, "mno_failed_rows_total", **darcy) == 1
    assert value(metrics, "mno_rollout_frames_total", problem="shallow_water") == 4
    assert value(metrics, "mno_rollouts_in_flight", problem="shallow_water") == 1
    assert value(metrics, "mno_shadow_relative_l2_count", **darcy, shadow="4") == 1
    assert value(metrics, "mno_worker_restarts_total", **darcy, device="cuda:0") == 1
    assert value(metrics, "mno_worker_memory_bytes", **darcy, device="cuda:0", kind="device_peak") == 300
    assert value(metrics, "mno_model_loads_total", model="darcy", outcome="failed") == 1
    assert value(metrics, "mno_model_load_seconds_count", model="darcy") == 1
    assert value(metrics, "mno_alias_weight", model="darcy", alias="production", version="4") == 0.05
    assert value(metrics, "mno_version_served", **darcy) == 1
    assert (value(metrics, "mno_arena_bytes", kind="used"), value(metrics, "mno_draining")) == (10, 1)
    assert value(metrics, "mno_store_reachable") == 0
    assert value(metrics, "mno_process_restarts_total", kind="front") == 1
    assert value(metrics, "process_open_fds") > 0


@pytest.mark.parametrize(("accept", "read"), [(None, read_text), (OPENMETRICS, read_openmetrics)])
def test_the_page_is_what_the_format_says_and_names_its_process(
    accept: str | None, read: Callable[[str], list[Metric]]
) -> None:
    page, media_type = everything().render(accept)
    assert media_type.startswith("text/plain" if accept is None else "application/openmetrics-text")
    families = list(read(page.decode()))
    assert all(family.documentation for family in families)
    assert {sample.labels["process"] for family in families for sample in family.samples} == {"front-1"}
    # everything that can be observed was, so that no metric is there that nobody has seen
    assert not [family.name for family in families if not family.samples]


def test_a_distribution_puts_each_observation_into_its_bucket() -> None:
    distribution = Distribution((1.0, 10.0))
    for amount in (0.0, 1.0, 1.5, 10.0, 11.0, math.inf):
        distribution.observe(amount)
    assert list(distribution.buckets()) == [("1.0", 2), ("10.0", 4), ("+Inf", 6)]
    assert distribution.count == 6


def test_a_request_under_way_is_seen_until_it_ended() -> None:
    metrics = Metrics()
    route = metrics.route("grpc", "mno.v1.Solver/Solve")
    assert metrics.route("grpc", "mno.v1.Solver/Solve") is route
    route.began()
    labels = {"protocol": "grpc", "route": "mno.v1.Solver/Solve"}
    assert value(metrics, "mno_requests_in_flight", **labels) == 1
    route.ended("OK", 0.1)
    assert value(metrics, "mno_requests_in_flight", **labels) == 0


def test_the_page_stays_small_whatever_the_labels() -> None:
    metrics = Metrics()
    for n in range(MOST_CHILDREN + 500):
        metrics.refuse("http", f"reason-{n}")
    refused = {key: n for key, n in samples(metrics.render()[0]).items() if key[0] == "mno_refused_total"}
    assert len(refused) == MOST_CHILDREN + 1
    assert value(metrics, "mno_refused_total", protocol="other", reason="other") == 500


def test_a_version_that_is_gone_is_off_the_page() -> None:
    metrics = everything()
    metrics.forget("darcy", "3")
    metrics.serve([("darcy", "4")])
    metrics.follow({("darcy", "production"): {"4": 1.0}})
    left = [name for name, labels in samples(metrics.render()[0]) if ("version", "3") in labels]
    assert left == []
    assert value(metrics, "mno_version_served", model="darcy", version="4") == 1


def test_work_is_seen_and_so_is_that_there_is_none() -> None:
    metrics = everything()
    before = metrics.work
    metrics.route("http", "/healthz/ready").began()
    assert metrics.work == before
    metrics.queue("darcy", "4").on_batch(1, 0, [0.0], 0.01)
    assert metrics.work > before
    before = metrics.work
    metrics.refuse("http", "invalid-field")
    assert metrics.work > before


def test_labels_have_to_be_all_there() -> None:
    with pytest.raises(ValueError, match=r"has labels .*, got"):
        Metrics()._refused.child("http")


@pytest.mark.parametrize(("accept", "read"), [(None, read_text), (OPENMETRICS, read_openmetrics)])
def test_pages_of_several_processes_make_one(accept: str | None, read: Callable[[str], list[Metric]]) -> None:
    fronts = [Metrics("front-0"), Metrics("front-1"), everything()]
    fronts[0].refuse("http", "overloaded")
    page = merge_pages([front.render(accept)[0] for front in fronts[:2]]).decode()
    families = {family.name: family for family in read(page)}
    refused = {sample.labels["process"]: sample.value for sample in families["mno_refused"].samples}
    assert refused == {"front-0": 1}
    drains = {sample.labels["process"] for sample in families["mno_draining"].samples}
    assert drains == {"front-0", "front-1"}
    names = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_no_pages_make_an_empty_one() -> None:
    assert merge_pages([]) == b""

"""Traces, kept in memory by OpenTelemetry's own exporter."""

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import uvicorn
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from model_store import Catalog, open_catalog
from service.access.gate import Guard, Passage, visit_of
from service.batching.admission import BatchRules
from service.errors import InvalidSettings
from service.grpc.call import Call, Method
from service.grpc.health import Health
from service.grpc.server import GrpcServer
from service.http.abortable import AbortableProtocol
from service.http.routes import create_app
from service.settings import Limits, Settings
from service.telemetry.timing import Timing
from service.telemetry.tracing import NO_TRACER, OpenTelemetry, Tracer, TracingSettings, open_tracer
from service.versions.local import LocalRepository
from service.versions.routing import Route as Placement

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMING = Timing(queue=2.0, compute=5.0, certify=1.0, total=9.0)

Traced = Callable[..., tuple[str, list[ReadableSpan]]]


@pytest.fixture
def traced() -> Traced:
    """Traces one request; gives the id that it had meanwhile, and the spans that were sent."""

    def trace(
        traceparent: str | None = None,
        sample: float = 1.0,
        status: str = "200",
        timing: Timing | None = TIMING,
    ) -> tuple[str, list[ReadableSpan]]:
        exporter = InMemorySpanExporter()
        settings = TracingSettings(endpoint="http://127.0.0.1:1", sample=sample)
        tracer = OpenTelemetry(settings, "front-0", exporter)
        assert tracer.on
        begun = tracer.begin("POST /v1/problems/{problem}/solve", traceparent, time.perf_counter())
        found = begun.id
        begun.end(status, timing, {"mno.model": "darcy@3"})
        tracer.close()
        return found, list(exporter.get_finished_spans())

    return trace


def milliseconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e6


def test_a_request_has_a_span_for_each_part_one_after_the_other(traced: Traced) -> None:
    trace_id, spans = traced()
    by_name = {span.name: span for span in spans}
    whole = by_name.pop("POST /v1/problems/{problem}/solve")
    assert {name: milliseconds(span) for name, span in by_name.items()} == {
        "queue": 2.0,
        "compute": 5.0,
        "bound": 1.0,
    }
    assert whole.context is not None
    assert f"{whole.context.trace_id:032x}" == trace_id
    parents = [span.parent.span_id for span in by_name.values() if span.parent]
    assert parents == 3 * [whole.context.span_id]
    assert by_name["queue"].end_time == by_name["compute"].start_time
    assert by_name["compute"].end_time == by_name["bound"].start_time
    assert whole.kind is SpanKind.SERVER
    assert dict(whole.attributes or {}) == {"mno.status": "200", "mno.model": "darcy@3"}
    assert whole.resource.attributes["service.name"] == "mno"


def test_a_request_that_was_not_computed_has_one_span(traced: Traced) -> None:
    _, spans = traced(status="429", timing=None)
    assert [span.status.status_code for span in spans] == [StatusCode.UNSET]


@pytest.mark.parametrize("status", ["500", "503", "INTERNAL"])
def test_what_the_service_broke_is_an_error(traced: Traced, status: str) -> None:
    _, spans = traced(status=status, timing=None)
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR]


def test_the_client_s_trace_goes_on_and_the_client_decides(traced: Traced) -> None:
    trace_id, spans = traced(f"00-{TRACE}-{PARENT}-01", sample=0.0)
    assert trace_id == TRACE
    whole = spans[-1]
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    trace_id, spans = traced(f"00-{TRACE}-{PARENT}-00", sample=1.0)
    assert (trace_id, spans) == ("", [])


@pytest.mark.parametrize(
    "broken", ["", "x", f"00-{32 * '0'}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", 9999 * "0"]
)
def test_a_broken_parent_is_as_none(traced: Traced, broken: str) -> None:
    trace_id, spans = traced(broken)
    assert trace_id != TRACE
    assert len(spans) == 4


def test_what_is_not_sampled_costs_no_spans(traced: Traced) -> None:
    assert traced(sample=0.0) == ("", [])


def test_nothing_is_traced_unless_it_is_configured() -> None:
    tracer = open_tracer(TracingSettings(), "front-0")
    assert tracer is NO_TRACER
    assert not tracer.on
    trace = tracer.begin("x", f"00-{TRACE}-{PARENT}-01", 0.0)
    trace.end("200", TIMING)
    assert trace.id == ""
    tracer.close()


def test_a_collector_that_is_away_does_not_keep_the_service_from_stopping() -> None:
    tracer = open_tracer(TracingSettings(endpoint="http://127.0.0.1:9/v1/traces", sample=0.0), "front-0")
    assert tracer.on
    tracer.begin("x", None, time.perf_counter()).end("200")
    tracer.close()


IMPORTS = """
import sys
from service.telemetry.tracing import TracingSettings, open_tracer
open_tracer(TracingSettings(), "front-0")
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
# as if the extra were not installed
sys.modules["opentelemetry"] = None
try:
    open_tracer(TracingSettings(endpoint="http://127.0.0.1:9"), "front-0")
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_opentelemetry_is_imported_only_when_it_is_wanted_and_missed_in_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(InvalidSettings.__name__)
    assert 'pip install "mno[tracing]"' in result.stdout


@pytest.mark.parametrize("given", [{"endpoint": "localhost"}, {"sample": 1.1}, {"samples": 1}])
def test_bad_settings_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TracingSettings.model_validate(given)


def guarded(exporter: InMemorySpanExporter) -> tuple[Guard, Tracer]:
    tracer = OpenTelemetry(TracingSettings(endpoint="http://127.0.0.1:1", sample=0.0), "front-0", exporter)
    return Guard(tracer=tracer), tracer


def test_requests_over_http_go_on_with_the_header_s_trace() -> None:
    exporter = InMemorySpanExporter()
    guard, tracer = guarded(exporter)

    async def hello(scope: Scope, receive: Receive, send: Send) -> None:
        visit_of(scope).note(TIMING, "darcy@3", 8)
        await PlainTextResponse("hello")(scope, receive, send)

    async def ask() -> None:
        passage = Passage(hello, guard, [Route("/v1/models/{name}", hello)])

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = {}
            await passage(scope, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            await http.get("/v1/models/one", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            await http.get("/v1/models/two")

    asyncio.run(ask())
    tracer.close()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["queue", "compute", "bound", "GET /v1/models/{name}"]
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}


NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
SOLVE = "POST /v1/problems/{problem}/solve"


@pytest.mark.parametrize("way", [{}, {"Content-Encoding": "identity"}], ids=["short", "long"])
def test_the_parts_of_a_request_lie_within_it_and_it_names_the_model(
    settings: Settings, serve_with: Any, gated_worker: Any, way: dict[str, str]
) -> None:
    exporter = InMemorySpanExporter()
    guard, tracer = guarded(exporter)
    assert settings.store is not None
    version = open_catalog(settings.store).load("darcy", 1)
    stream = io.BytesIO()
    np.save(stream, np.ones((32, 32), "f4"))
    body = stream.getvalue()
    parent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}

    async def story() -> None:
        worker = gated_worker()
        worker.gate.set()
        served = serve_with(
            worker, [version], Limits(), BatchRules(), {"darcy": Placement(name="darcy", main=1)}
        )
        repository = LocalRepository(Catalog([]), served.models, lambda _: served.surrogates)
        app = create_app(served.solver, served.models, repository, Limits(), guard=guard)
        config = uvicorn.Config(app, http=AbortableProtocol, port=0, log_config=None, lifespan="off")
        server = uvicorn.Server(config)

        async def halves() -> AsyncIterator[bytes]:
            yield body[:100]
            # the request was received, and is not whole
            while not guard.metrics.render()[0].count(b"mno_requests_in_flight{"):
                await asyncio.sleep(0)
            yield body[100:]

        async with served.solver:
            running = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0)
            port = server.servers[0].sockets[0].getsockname()[1]
            headers = NPY | way | parent | {"Content-Length": str(len(body))}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                path = "/v1/problems/darcy/solve?error=none"
                assert (await client.post(path, content=halves(), headers=headers)).status_code == 200
            server.should_exit = True
            await running

    asyncio.run(story())
    tracer.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    whole = spans.pop(SOLVE)
    assert dict(whole.attributes or {}) == {
        "mno.status": "200",
        "mno.model": "darcy@1",
        "mno.batch_size": 1,
    }
    assert whole.context is not None
    assert dict(whole.context.trace_state) == {"vendor": "1"}
    assert set(spans) == {"queue", "compute", "bound"}
    for part in spans.values():
        assert (
            (whole.start_time or 0) <= (part.start_time or 0) <= (part.end_time or 0) <= (whole.end_time or 0)
        )


def test_calls_over_grpc_go_on_with_the_metadata_s_trace() -> None:
    exporter = InMemorySpanExporter()
    guard, tracer = guarded(exporter)

    async def hello(call: Call) -> None:
        call.timing = TIMING
        await call.send([b"hello"])

    async def ask() -> None:
        methods = [Method("/test/Hello", hello)]
        server = GrpcServer(methods, guard, Limits(), Health([], lambda: False))
        port = await server.start("127.0.0.1:0")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            say: Callable[..., Awaitable[bytes]] = channel.unary_unary("/test/Hello", bytes, bytes)
            await say(b"", metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")], timeout=30)
            await say(b"", timeout=30)
        await server.drain(10)

    asyncio.run(ask())
    tracer.close()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["queue", "compute", "bound", "test/Hello"]
    assert {f"{span.context.trace_id:032x}" for span in spans if span.context} == {TRACE}
    assert dict(spans[-1].attributes or {})["mno.status"] == "OK"

"""Traces of requests for OpenTelemetry: the request, and within it the queue, the computation and the bound.

One :class:`Tracer` a front; :class:`NoTracer` where none is configured, which imports nothing::

    tracer = open_tracer(settings.tracing, process="front-0")
    if tracer.on:                                       # headers are looked at only then
        trace = tracer.begin("POST /v1/problems/{problem}/solve", traceparent, received)
        ...
        trace.end("200", response.timing, {"mno.model": "darcy@3"})
    await asyncio.to_thread(tracer.close)               # sends what is left

``traceparent`` is the HTTP header or gRPC metadata of this name (W3C Trace Context): a client that traces
decides whether its request is sampled; of the others, the share ``sample`` is.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final

from pydantic import BaseModel, ConfigDict, Field

from service.errors import InvalidSettings
from service.telemetry.timing import Timing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["NO_TRACER", "NoTracer", "OpenTelemetry", "Trace", "Tracer", "TracingSettings", "open_tracer"]

MILLISECOND: Final = 1_000_000  # [ns]
SECOND: Final = 1_000_000_000


@final
class TracingSettings(BaseModel):
    """Where traces go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; none: no traces",
    )
    sample: float = Field(
        default=0.01, ge=0, le=1, description="share of the requests traced whose client does not trace"
    )
    service_name: str = Field(default="mno", description="service.name of the spans")


class Trace(ABC):
    """One request's."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The trace's id in hexadecimal; empty: it is not recorded."""

    @abstractmethod
    def end(self, status: str, timing: Timing | None = None, facts: Mapping[str, Any] | None = None) -> None:
        """The request has been answered.

        Args:
            status: the HTTP status, or the name of the gRPC code.
            timing: where the time went, if it was computed.
            facts: attributes, such as ``{"mno.model": "darcy@3", "mno.batch_size": 8}``.
        """


class Tracer(ABC):
    """Begins traces."""

    on: bool

    @abstractmethod
    def begin(
        self, name: str, traceparent: str | None, received: float, tracestate: str | None = None
    ) -> Trace:
        """A request came; ``received`` is when, on the clock of ``time.perf_counter`` [s]."""

    @abstractmethod
    def close(self) -> None:
        """Send what is left; blocks for some seconds at most."""


@final
class _NoTrace(Trace):
    @property
    def id(self) -> str:
        return ""

    def end(self, status: str, timing: Timing | None = None, facts: Mapping[str, Any] | None = None) -> None:
        pass


NO_TRACE: Final = _NoTrace()


@final
class NoTracer(Tracer):
    """Where nobody wants traces."""

    on = False

    def begin(
        self,
        name: str,  # noqa: ARG002
        traceparent: str | None,  # noqa: ARG002
        received: float,  # noqa: ARG002
        tracestate: str | None = None,  # noqa: ARG002
    ) -> Trace:
        return NO_TRACE

    def close(self) -> None:
        pass


NO_TRACER: Final = NoTracer()


@final
class _Span(Trace):
    """A span, and below it one for each part of the work, made when all is known."""

    def __init__(self, tracer: Any, span: Any, began: int) -> None:
        self._tracer = tracer
        self._span = span
        self._began = began

    @property
    def id(self) -> str:
        context = self._span.get_span_context()
        return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""

    def end(self, status: str, timing: Timing | None = None, facts: Mapping[str, Any] | None = None) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("mno.status", status)
        self._span.set_attributes(dict(facts or {}))
        if status == "INTERNAL" or status.startswith("5"):
            self._span.set_status(StatusCode.ERROR)
        if timing is not None and self._span.is_recording():
            self._add_parts(timing)
        self._span.end()

    def _add_parts(self, timing: Timing) -> None:
        from opentelemetry.trace import set_span_in_context

        parent = set_span_in_context(self._span)
        parts = {"queue": timing.queue, "compute": timing.compute, "bound": timing.certify}
        # what is before the queue is reading the request
        at = self._began + int(MILLISECOND * max(0.0, timing.total - sum(parts.values())))
        for name, milliseconds in parts.items():
            until = at + int(MILLISECOND * milliseconds)
            self._tracer.start_span(name, context=parent, start_time=at).end(until)
            at = until


@final
class OpenTelemetry(Tracer):
    """Sends the sampled traces to a collector, in a thread of its own."""

    on = True

    def __init__(self, settings: TracingSettings, process: str, exporter: SpanExporter) -> None:
        """``exporter`` sends them."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # a provider of its own, not the global one
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample)),
            resource=Resource({"service.name": settings.service_name, "service.instance.id": process}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mno")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, name: str, traceparent: str | None, received: float, tracestate: str | None = None
    ) -> Trace:
        from opentelemetry.trace import SpanKind

        headers = {"traceparent": traceparent, "tracestate": tracestate}
        # what is broken is as if it were not there
        context = self._propagator.extract({name: text for name, text in headers.items() if text})
        began = time.time_ns() - int(SECOND * max(0.0, time.perf_counter() - received))
        span = self._tracer.start_span(name, context, kind=SpanKind.SERVER, start_time=began)
        return _Span(self._tracer, span, began)

    def close(self) -> None:
        self._provider.shutdown()


def open_tracer(settings: TracingSettings, process: str) -> Tracer:
    """What the settings say.

    Raises:
        InvalidSettings: traces are wanted, and the extra that sends them is not installed.
    """
    if settings.endpoint is None:
        return NO_TRACER
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OpenTelemetry(settings, process, OTLPSpanExporter(endpoint=settings.endpoint, timeout=2))
    except ModuleNotFoundError as error:
        raise InvalidSettings(
            f'tracing.endpoint: {error.name} is not installed; `pip install "mno[tracing]"`, or leave it out'
        ) from error

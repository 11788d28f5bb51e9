"""Which spans does OpenTelemetry get? One trace leads from a request, or beat's claim, to each attempt and step.

    with tracing.span("claim") as claim: ...

Its one rule: OpenTelemetry's own variables turn it on: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
or OTEL_TRACES_EXPORTER. Without them it imports nothing (redis-py does), and a span costs a comparison.
A run keeps the W3C traceparent of the code that created it (`messages.baggage`), and its attempts continue that trace.
The thread that exports starts with the first span of a process, and so in the children of a worker.

Limits: spans are dropped while the collector does not take them, and a process that is killed loses its last ones.
Jobs may make spans of their own with OpenTelemetry's API; nothing masks these.
"""

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from jobs.secrets import in_one_line

HEADER = "traceparent"
LONGEST_HEADER = 55  # characters of a traceparent, version 00
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER = "OTEL_TRACES_EXPORTER"
LONGEST_FLUSH = 2_000  # milliseconds that the end of a process may wait for the collector
LONGEST_TEXT = 500  # characters of an error


class _NoSpan:
    """Stands in for a span while tracing is off."""

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        pass

    def update_name(self, name: str) -> None:
        pass

    def is_recording(self) -> bool:
        return False


class _Tracing:
    """OpenTelemetry's tracer and provider in this process; None while tracing is off."""

    tracer: Any = None
    provider: Any = None
    exporter: Any = None  # not started yet
    starting = threading.Lock()


_NO_SPAN = _NoSpan()


def is_on() -> bool:
    """Whether this process makes spans."""
    return _Tracing.tracer is not None


@contextmanager
def span(
    name: str, kind: str = "internal", parents: Collection[object] = (), attributes: dict[str, Any] | None = None
) -> Iterator[Any]:
    """A span around the block, and what the block starts belongs to it. An error of the block is the span's status.

    `parents` are traceparents: the span continues a single one, and links to several.
    """
    if _Tracing.tracer is None:
        yield _NO_SPAN
        return
    from opentelemetry.trace import SpanKind  # late: it may not be installed

    _start_exporting()
    options: dict[str, Any] = {"kind": SpanKind[kind.upper()], "attributes": attributes, **_origin(parents)}
    unnoted = {"record_exception": False, "set_status_on_exception": False}  # they would hold unmasked texts
    with _Tracing.tracer.start_as_current_span(name, **options, **unnoted) as current, ExitStack() as ending:
        ending.push(partial(_note, current))
        yield current


def fail(current: Any, error: BaseException) -> None:
    """Mark a span as failed, with the class of the error and its text, masked."""
    if current.is_recording():
        _mark_failed(current, type(error).__name__, in_one_line(error, LONGEST_TEXT))


def fail_request(current: Any, status: int) -> None:
    """Mark the span of a request as failed: the site answers with this status."""
    if current.is_recording():
        _mark_failed(current, str(status), "")


def headers() -> dict[str, str]:
    """The traceparent of the current span, for `messages.baggage`. It also says if the trace is not sampled."""
    from opentelemetry import trace  # late: it may not be installed

    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    return {HEADER: f"00-{current.trace_id:032x}-{current.span_id:016x}-{current.trace_flags:02x}"}


def connect() -> None:
    """Turn tracing on if OpenTelemetry's variables ask for it. Raises ImproperlyConfigured."""
    if (name := _asked_for(os.environ)) is None:
        return
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise ImproperlyConfigured(
            f"{name} is set, but OpenTelemetry is not installed: run `make install EXTRAS=opentelemetry`, or unset it."
        )
    turn_on(_exporter(os.environ))


def turn_on(exporter: Any) -> None:
    """Make spans from now on, and give them to this exporter."""
    from opentelemetry import trace  # late: it may not be installed
    from opentelemetry.sdk.trace import TracerProvider

    known = trace.get_tracer_provider()
    if isinstance(known, TracerProvider):  # of the program that embeds this one, such as opentelemetry-instrument
        _Tracing.provider = known
    else:
        _Tracing.provider, _Tracing.exporter = TracerProvider(resource=_resource()), exporter
        trace.set_tracer_provider(_Tracing.provider)
    _Tracing.tracer = _Tracing.provider.get_tracer("punctual")


def stop(**_: Any) -> None:
    """Send what is left, before this process ends."""
    if _Tracing.provider is not None:
        _Tracing.provider.shutdown()


def _asked_for(variables: Any) -> str | None:
    """The variable that turns tracing on; None if it stays off."""
    if variables.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or variables.get(EXPORTER, "") == "none":
        return None
    return next((name for name in (*ENDPOINTS, EXPORTER) if variables.get(name, "").strip()), None)


def _exporter(variables: Any) -> Any:
    chosen = variables.get(EXPORTER, "").strip() or "otlp"
    if chosen == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # late: it may not be installed

        return ConsoleSpanExporter()
    if chosen != "otlp":
        raise ImproperlyConfigured(f"{EXPORTER} is invalid: it must be otlp, console or none.")
    for name in PROTOCOLS:
        if variables.get(name, "").strip() not in {"", "http/protobuf"}:
            raise ImproperlyConfigured(
                f"{name} is invalid: it must be http/protobuf, for port 4318 of most collectors."
            )
    for name in ENDPOINTS:
        if not variables.get(name, "http://").strip().startswith(("http://", "https://")):
            raise ImproperlyConfigured(f"{name} is invalid: it must look like http://collector:4318.")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # late, as above

    return OTLPSpanExporter()


def _resource() -> Any:
    """What OpenTelemetry's variables say about this process, and Punctual's settings where they say nothing."""
    from opentelemetry.sdk.resources import Resource  # late: it may not be installed

    found, ours = (
        Resource.create(),
        {
            "service.name": "punctual",
            "service.version": getattr(settings, "CODE_VERSION", ""),
            "deployment.environment.name": getattr(settings, "INSTALLATION", ""),
        },
    )
    named = {name for name, value in found.attributes.items() if not str(value).startswith("unknown_service")}
    return found.merge(Resource({name: value for name, value in ours.items() if value and name not in named}))


def _start_exporting() -> None:
    """Start the thread that exports: not before this process has a span, because a fork leaves threads behind."""
    if _Tracing.exporter is None:
        return
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # late: it may not be installed

    class Processor(BatchSpanProcessor):
        def shutdown(self) -> None:
            self._batch_processor.shutdown(timeout_millis=LONGEST_FLUSH)  # the public one waits for 30 s

    with _Tracing.starting:
        exporter, _Tracing.exporter = _Tracing.exporter, None
        if exporter is not None:
            _Tracing.provider.add_span_processor(Processor(exporter))


def _origin(parents: Collection[object]) -> dict[str, Any]:
    from opentelemetry import trace  # late: it may not be installed
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    read = TraceContextTextMapPropagator().extract
    texts = {text for text in parents if isinstance(text, str) and len(text) <= LONGEST_HEADER}  # may be forged
    found = [read({HEADER: text}) for text in sorted(texts)]
    if len(found) <= 1:
        return {"context": found[0]} if found else {}
    return {"links": [trace.Link(trace.get_current_span(context).get_span_context()) for context in found]}


def _note(current: Any, _kind: object, error: BaseException | None, _traceback: object) -> None:
    if error is not None:
        fail(current, error)


def _mark_failed(current: Any, kind: str, text: str) -> None:
    from opentelemetry.trace import Status, StatusCode  # late: it may not be installed

    current.set_attributes({"error.type": kind})
    current.set_status(Status(StatusCode.ERROR, text))

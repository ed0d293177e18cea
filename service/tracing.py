"""Traces for OpenTelemetry, when its own environment variables name a receiver: requests, and the stages of jobs.

FastAPI traces requests by itself once there is a provider. The stages of a job form one trace, whose id follows from
the job's: servers and workers that look after it one after the other need to tell each other nothing.
"""

from __future__ import annotations

import hashlib

from opentelemetry import trace

from etd_ds.contract import errors
from service.settings import traces_wanted


def set_up() -> None:
    """Export what is traced from now on, if the environment asks for it. Raises `EtdError` if that is not installed."""
    if not traces_wanted():
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise errors.EtdError(
            "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, but OpenTelemetry's SDK and exporter are not installed: "
            "pip install 'etd-ds[otel]', or set OTEL_SDK_DISABLED=true"
        ) from None
    resource = Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "etd-jobs"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def close() -> None:
    """Send what was traced last. (Uvicorn ends the process by the signal that it got, so no exit handler runs.)"""
    shut_down = getattr(trace.get_tracer_provider(), "shutdown", None)
    if shut_down is not None:
        shut_down()


def stage(job_id: str, name: str, began: float, ended: float, *, error: str = "", **facts: str | int) -> None:
    """Note a stage of a job that has ended; times are seconds since 1970."""
    span = trace.get_tracer("etd_jobs").start_span(
        f"job {name}",
        context=trace.set_span_in_context(trace.NonRecordingSpan(_root(job_id))),
        start_time=int(began * 1e9),
        attributes={"etd.job": job_id, **facts},
    )
    if error:
        span.set_status(trace.Status(trace.StatusCode.ERROR, error))
    span.end(int(ended * 1e9))


def concerns(job_id: str) -> None:
    """The request that is answered just now is about this job."""
    trace.get_current_span().set_attribute("etd.job", job_id)


def trace_id(job_id: str | None) -> str | None:
    """The trace that a log line belongs to: the request's, or else the job's."""
    now = trace.get_current_span().get_span_context()
    if now.is_valid:
        return trace.format_trace_id(now.trace_id)
    return trace.format_trace_id(_root(job_id).trace_id) if job_id and traces_wanted() else None


def _root(job_id: str) -> trace.SpanContext:
    digest = hashlib.sha256(job_id.encode()).digest()
    numbers = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")
    return trace.SpanContext(*numbers, is_remote=True, trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED))

"""Traces reach an OTLP receiver on loopback: requests by their routes, and a job's stages as one trace."""

from __future__ import annotations

import json
import sys

import pytest
from receiver import Receiver
from server_process import Server

from etd_ds.contract import errors
from service import tracing

SMALL = {"layers": 3, "hidden": 192, "steps": 2}


def test_requests_and_stages_are_traced(server: Server, monkeypatch: pytest.MonkeyPatch):
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with Receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        server.start("--log-json")
        job = server.client.wait(server.client.create(SMALL)["id"])
        server.client._http.get("/healthz")
        said = server.end()
        spans, services = [], set()
        while receiver.more:
            path, _, body = receiver.got()
            assert path == "/v1/traces"
            for one in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
                services |= {fact.value.string_value for fact in one.resource.attributes if fact.key == "service.name"}
                spans += [span for scope in one.scope_spans for span in scope.spans]
    assert services == {"etd-jobs"}
    by_name = {span.name: span for span in spans}
    assert {"POST /v1/jobs", "GET /v1/jobs/{job_id}/events", "job extraction", "job attempt"} <= by_name.keys()
    assert not any("healthz" in name for name in by_name)
    facts = {fact.key: fact.value.string_value for fact in by_name["POST /v1/jobs"].attributes}
    assert facts["etd.job"] == job["id"]
    stages = [by_name["job extraction"], by_name["job attempt"]]
    assert all(0 < span.start_time_unix_nano <= span.end_time_unix_nano for span in stages)
    (trace,) = {span.trace_id.hex() for span in stages}
    lines = [json.loads(line) for line in said.splitlines()]
    of_job = {(line["logger"], line["trace_id"]) for line in lines if line["job"] == job["id"]}
    assert of_job == {("etd_jobs", trace), ("etd_jobs.audit", by_name["POST /v1/jobs"].trace_id.hex())}


def test_asking_for_traces_without_the_packages_is_said_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracing.set_up()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(errors.EtdError, match=r"pip install 'etd-ds\[otel\]'"):
        tracing.set_up()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing.set_up()

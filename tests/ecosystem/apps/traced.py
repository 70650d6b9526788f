"""OpenTelemetry instruments the worker; the spans go to a file, one JSON line each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery.signals import worker_init, worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.ecosystem.apps.base import make

app = make("eco")


class ToFile(SpanExporter):
    """Writes each span down as it ends."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["SPANS"]).open("a") as file:
            for span in spans:
                facts = {
                    "name": span.name,
                    "trace": f"{span.context.trace_id:032x}",
                    "status": span.status.status_code.name,
                    "state": (span.attributes or {}).get("celery.state"),
                    "errors": [event.name for event in span.events],
                }
                file.write(json.dumps(facts) + "\n")
        return SpanExportResult.SUCCESS


def start_tracing(**_: Any) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()


# Prefork: in each child, as OpenTelemetry's own documentation says. Threads: in the worker.
(worker_process_init if os.environ["POOL"] == "prefork" else worker_init).connect(
    start_tracing, weak=False
)

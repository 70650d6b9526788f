"""A task of celery-batches beside the others: it has a Strategy of its own."""

from __future__ import annotations

from typing import Any

from celery_batches import Batches

from tests.ecosystem.apps.base import make, note

app = make("eco")


@app.task(name="eco.batched", base=Batches, flush_every=3, flush_interval=1)
def batched(requests: Any) -> None:
    note("batch " + ",".join(sorted(request.args[0] for request in requests)))
    for request in requests:
        app.backend.mark_as_done(request.id, "done", request=request)

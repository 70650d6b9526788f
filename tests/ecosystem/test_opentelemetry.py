"""OpenTelemetry: one trace for all attempts of a task, one error for each dead letter."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.ecosystem.conftest import need
from tests.servers import eventually

need("opentelemetry.instrumentation.celery", "opentelemetry.sdk", required=True)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_spans_of_retries_share_a_trace_and_only_the_last_is_an_error(
    scene, start_worker, tmp_path, pool
):
    spans = tmp_path / "spans"
    env = {**scene.env, "SPANS": str(spans), "POOL": pool}
    start_worker("tests.ecosystem.apps.traced", scene.broker, pool=pool, env=env)
    # As an instrumented sender does: its trace goes along in the message's headers.
    sent = [{"traceparent": f"00-{digit * 32}-{'3' * 16}-01"} for digit in "12"]
    recovered = scene.send("eco.flaky", 2, headers=sent[0])
    dead = scene.send("eco.flaky", 9, headers=sent[1])
    scene.ends(recovered)
    scene.ends(dead, "FAILURE")

    def told() -> list[dict[str, str]]:
        lines = spans.read_text().splitlines() if spans.exists() else []
        return [span for span in map(json.loads, lines) if span["name"] == "run/eco.flaky"]

    eventually(lambda: len(told()) == 7)  # three attempts and four
    short, long = ([span for span in told() if span["trace"] == digit * 32] for digit in "12")
    assert [span["state"] for span in short] == ["RETRY", "RETRY", "SUCCESS"]
    assert [span["state"] for span in long] == ["RETRY", "RETRY", "RETRY", "FAILURE"]
    assert Counter(span["status"] for span in short + long)["ERROR"] == 1
    assert long[-1]["status"] == "ERROR"

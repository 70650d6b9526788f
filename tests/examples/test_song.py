"""``python -m examples.song``: three APIs on a bad day, and the table of their policies."""

from __future__ import annotations

import re

import pytest

from celery_resilience.policy.schedule import schedule
from tests.classify.conftest import library
from tests.examples.command import Example

#: Call: time limit, the waits before its retries.
TABLE = {
    "ChatGPT lyrics": (60, [2, 4, 8]),
    "Suno generate": (30, [1, 2, 4]),
    "Suno status": (30, [1, 2]),
    "Suno timestamps": (120, [2, 4]),
    "Creatomate template": (30, [1, 2]),
    "Creatomate render": (60, [1, 2, 4]),
    "Creatomate status": (30, [1, 2]),
}


@pytest.mark.parametrize("name", TABLE)
def test_every_call_has_the_limits_of_the_table(name):
    """Its policy waits exactly as long as the table says, its client gives up when it says."""
    library("httpx")
    from examples.song.calls import CALLS

    total, waits = TABLE[name]
    call = CALLS[name]
    planned = schedule(call.policy).waits
    assert [(wait.shortest, wait.worst) for wait in planned] == [(w, w) for w in waits]
    assert call.policy.backoff_max == 30
    timeout = call.timeout()
    assert (timeout.connect, timeout.read, timeout.write, timeout.pool) == (10, *[total] * 3)
    assert call.options()["failure_policy"] == call.policy


def test_table_has_no_other_rows():
    library("httpx")
    from examples.song.calls import CALLS

    assert list(CALLS) == list(TABLE)


def test_songs_get_their_videos_whatever_the_services_do():
    """Transient failures are retried, a dead letter's replay continues its chain."""
    ended = Example("examples.song", "httpx", "openai").ended()
    out = ended.output
    assert ended.code == 0
    assert ended.left == []
    # Each line tells attempt, error and delay. Where the machine is slow, the soft time limit may
    # come before the client's own; OpenAI's client makes a connection error of it.
    late = r"(httpx.ReadTimeout|\S+SoftTimeLimitExceeded)"
    for retried in (
        r"write_lyrics\[\w+\]: attempt 1 ended \(openai.API\w+Error, .*\): again in 0\.1",
        r"write_lyrics\[\w+\]: attempt \d ended \(openai.RateLimitError, .*\): again in 1\.",
        rf"generate_song\[\w+\]: attempt \d ended \({late}, .*\): again in 0\.",
        r"generate_song\[\w+\]: attempt \d ended \(httpx.HTTPStatusError, .*503\): again in 0\.",
        r"await_song\[\w+\]: attempt \d ended \(httpx.ReadError, .*\): again in 0\.",
        r"await_song\[\w+\]: attempt \d ended \(.*Snooze.*\): again in 1\.",
        r"fetch_timestamps\[\w+\]: attempt \d ended \(httpx.HTTPStatusError, .*502\): again in 0",
        r"choose_template\[\w+\]: attempt \d ended \(billiard.exceptions.SoftTimeLimitExceeded, ",
        r"render_video\[\w+\]: attempt \d ended \(httpx.HTTPStatusError, .*429\): again in 2\.",
        r"render_video\[\w+\]: attempt 3 ended \(httpx.ReadError, .*\): again in 0\.2",
        r"await_video\[\w+\]: attempt \d ended \(httpx.HTTPStatusError, .*500\): again in 0\.",
    ):
        assert re.search(retried, out), retried
    assert "fire: render_video is a dead letter, exhausted after 4 attempts" in out
    assert re.search(r"the last error   httpx.ReadError: .* Connection reset by peer", out)
    assert "which came from  httpcore.ReadError" in out
    assert "silence: write_lyrics is a dead letter, permanent after 1 attempt" in out
    once = "paid: 1 generate, 1 render, 1 timestamps"
    assert re.search(rf"rain: https://creatomate/rain.mp4 after \d+ calls, {once}", out)
    assert re.search(rf"fire: https://creatomate/fire.mp4 after \d+ calls, {once}", out)
    assert "silence: still a dead letter, and only 1 call" in out


def test_sigterm_ends_the_example_and_all_that_it_has_started():
    example = Example("examples.song", "httpx", "openai")
    example.wait_for("attempt 1 ended")
    example.terminate()
    ended = example.ended()
    assert ended.code == 143
    assert ended.left == []

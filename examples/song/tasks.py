"""The chain of seven calls: ``celery -A examples.song.tasks worker``.

No task catches an error, waits or counts attempts: it makes its call and lets errors out.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
import openai
from celery import Celery, chain

from celery_resilience import Snooze, install
from examples.song.calls import CALLS, SPEEDUP, Call

__all__ = ["app", "video_of"]

app = Celery("song", broker=os.environ["BROKER_URL"], backend=os.environ["BACKEND_URL"])
app.conf.update(
    task_default_queue="examples.song",
    resilience_dead_letter_queue="examples.song.dead",
    broker_connection_retry_on_startup=True,
)
install(app)

# max_retries=0: the client would sleep in the worker between its own attempts.
chatgpt = openai.OpenAI(
    base_url=os.environ["OPENAI_URL"],
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    max_retries=0,
)
suno = httpx.Client(base_url=os.environ["SUNO_URL"])
creatomate = httpx.Client(base_url=os.environ["CREATOMATE_URL"])

LYRICS = CALLS["ChatGPT lyrics"]
GENERATE = CALLS["Suno generate"]
SONG_STATUS = CALLS["Suno status"]
TIMESTAMPS = CALLS["Suno timestamps"]
TEMPLATE = CALLS["Creatomate template"]
RENDER = CALLS["Creatomate render"]
VIDEO_STATUS = CALLS["Creatomate status"]

#: How often a service is asked whether it has finished, in seconds.
POLL_EVERY = 10 / SPEEDUP


def video_of(title: str) -> Any:
    """The whole way from a title to a video: ``video_of("rain").delay()``."""
    return chain(
        write_lyrics.s(title),
        generate_song.s(),
        await_song.s(),
        fetch_timestamps.s(),
        choose_template.s(),
        render_video.s(),
        await_video.s(),
    )


@app.task(**LYRICS.options())
def write_lyrics(title: str) -> dict[str, Any]:
    answer = chatgpt.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "user", "content": f"Write a song. Its title: {title}"}],
        timeout=LYRICS.timeout(openai.Timeout),
    )
    return {"title": title, "lyrics": answer.choices[0].message.content}


@app.task(bind=True, **GENERATE.options())
def generate_song(self: Any, song: dict[str, Any]) -> dict[str, Any]:
    wanted = {"title": song["title"], "prompt": song["lyrics"]}
    answer = post(suno, "/generate", wanted, GENERATE, key=self.request.id)
    return {**song, "song_id": answer["data"]["taskId"]}


@app.task(**SONG_STATUS.options())
def await_song(song: dict[str, Any]) -> dict[str, Any]:
    answer = get(suno, "/generate/record-info", SONG_STATUS, taskId=song["song_id"])
    if answer["data"]["status"] != "SUCCESS":
        raise Snooze(POLL_EVERY, "Suno is still singing")
    return {**song, "audio": answer["data"]["audioUrl"]}


@app.task(bind=True, **TIMESTAMPS.options())
def fetch_timestamps(self: Any, song: dict[str, Any]) -> dict[str, Any]:
    wanted = {"taskId": song["song_id"]}
    path = "/generate/get-timestamped-lyrics"
    answer = post(suno, path, wanted, TIMESTAMPS, key=self.request.id)
    return {**song, "words": answer["data"]["alignedWords"]}


@app.task(**TEMPLATE.options())
def choose_template(song: dict[str, Any]) -> dict[str, Any]:
    answer = get(creatomate, "/templates/lyrics", TEMPLATE)
    return {**song, "template": answer["id"]}


@app.task(bind=True, **RENDER.options())
def render_video(self: Any, song: dict[str, Any]) -> dict[str, Any]:
    wanted = {"template_id": song["template"], "modifications": song}
    answer = post(creatomate, "/renders", wanted, RENDER, key=self.request.id)
    return {**song, "video_id": answer["id"]}


@app.task(**VIDEO_STATUS.options())
def await_video(song: dict[str, Any]) -> str:
    answer = get(creatomate, f"/renders/{song['video_id']}", VIDEO_STATUS)
    if answer["status"] != "succeeded":
        raise Snooze(POLL_EVERY, "Creatomate is still rendering")
    return str(answer["url"])


def get(service: httpx.Client, path: str, call: Call, **query: str) -> Any:
    return service.get(path, params=query, timeout=call.timeout()).raise_for_status().json()


def post(service: httpx.Client, path: str, wanted: dict[str, Any], call: Call, key: str) -> Any:
    # A call that got no answer may have been heard all the same. The id of the task stays the
    # same over its retries and its replay, so that nothing is ordered and paid twice.
    headers = {"Idempotency-Key": key}
    answer = service.post(path, json=wanted, headers=headers, timeout=call.timeout())
    return answer.raise_for_status().json()

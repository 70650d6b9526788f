"""ChatGPT, Suno and Creatomate, as they are on a bad day."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from examples.stub import Request, Stub, Trouble, late, reset, status, trickle

__all__ = ["Services"]

FOREVER = 1_000


class Services(Stub):
    """All three of them at one address; *speedup* is how much faster than usual time goes by."""

    def __init__(self, speedup: float) -> None:
        super().__init__()
        #: What happens to the first calls, by call and title; after these all is well.
        self.troubles: dict[tuple[str, str], list[Trouble]] = {
            ("lyrics", "rain"): [late(90 / speedup), status(429, retry_after=1)],
            ("generate", "rain"): [late(45 / speedup), status(503)],
            ("song status", "rain"): [reset],
            ("timestamps", "rain"): [status(502)],
            ("template", ""): [trickle(60 / speedup)],
            ("render", "rain"): [status(429, retry_after=2)],
            ("video status", "rain"): [status(500)],
            ("render", "fire"): [reset] * FOREVER,
            ("lyrics", "silence"): [status(400, "a song needs words")] * FOREVER,
        }
        #: How often each call was made, by call and title.
        self.calls: Counter[tuple[str, str]] = Counter()
        #: What has to be paid: keys of orders, by call and title.
        self.orders: dict[tuple[str, str], set[str]] = {}
        self._lock = threading.Lock()

    def mend(self) -> None:
        """From now on all is well."""
        with self._lock:
            self.troubles.clear()

    def answer(self, request: Request) -> None:
        call, title = _asked(request)
        with self._lock:
            self.calls[call, title] += 1
            key = request.headers.get("Idempotency-Key")
            if key:  # ordered is ordered, whatever becomes of the answer
                self.orders.setdefault((call, title), set()).add(key)
            troubles = self.troubles.get((call, title))
            trouble = troubles.pop(0) if troubles else None
            finished = self.calls[call, title] > 3
        if trouble is not None:
            trouble(request)
        else:
            request.reply(200, _good_answer(call, title, finished))


def _asked(request: Request) -> tuple[str, str]:
    """Which call it is, and which song it is about."""
    route, sent = request.route, request.sent
    if route == "/v1/chat/completions":
        return "lyrics", sent["messages"][0]["content"].rpartition(": ")[2]
    if route == "/generate":
        return "generate", sent["title"]
    if route == "/generate/record-info":
        return "song status", request.query["taskId"].removeprefix("song-")
    if route == "/generate/get-timestamped-lyrics":
        return "timestamps", sent["taskId"].removeprefix("song-")
    if route == "/templates/lyrics":
        return "template", ""
    if route == "/renders":
        return "render", sent["modifications"]["title"]
    return "video status", route.removeprefix("/renders/video-")


def _good_answer(call: str, title: str, finished: bool) -> dict[str, Any]:
    if call == "lyrics":
        message = {"role": "assistant", "content": f"O {title}, o {title}, o {title}"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "1", "object": "chat.completion", "model": "", "created": 0,
                "choices": [choice]}  # fmt: skip
    if call == "generate":
        return {"data": {"taskId": f"song-{title}"}}
    if call == "song status":
        state = "SUCCESS" if finished else "PENDING"
        return {"data": {"status": state, "audioUrl": f"https://suno/{title}.mp3"}}
    if call == "timestamps":
        return {"data": {"alignedWords": [{"word": title, "startS": 0.5}]}}
    if call == "template":
        return {"id": "lyrics"}
    if call == "render":
        return {"id": f"video-{title}", "status": "planned"}
    state = "succeeded" if finished else "rendering"
    return {"status": state, "url": f"https://creatomate/{title}.mp4"}

"""A shop, three sources of trends and GitHub, on a bad day."""

from __future__ import annotations

import threading

from examples.stub import Request, Stub, Trouble, late, reset, status

__all__ = ["Services"]

FOREVER = 10_000


class Services(Stub):
    """All of them at one address."""

    def __init__(self) -> None:
        super().__init__()
        down = status(503)
        #: What happens to the first calls of each address; after these all is well.
        self.troubles: dict[str, list[Trouble]] = {
            "/price/bicycle": [status(429, retry_after=1), down, reset, late(2)],
            # The first hunt gets one answer of three and is tried once more; later ones get two.
            "/trends/news": [status(500)],
            "/trends/forum": [status(404)],
            "/trends/video": [reset] * FOREVER,
            "/releases": [down, status(429), status(404), down],
        }
        self._lock = threading.Lock()

    def answer(self, request: Request) -> None:
        with self._lock:
            troubles = self.troubles.get(request.route)
            trouble = troubles.pop(0) if troubles else None
        if trouble is not None:
            trouble(request)
        elif request.route.startswith("/trends"):
            request.reply(200, ["queues", request.route.rpartition("/")[2]])
        else:
            request.reply(200, {"price": 499.0})

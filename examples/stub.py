"""Services that misbehave, over real HTTP on this machine."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["Request", "Stub", "Trouble", "late", "reset", "status", "trickle"]


class Stub(ThreadingHTTPServer):
    """A server on a free port, for as long as this context manager lives.

    It hands every request to *answer*.
    """

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, request: Request) -> None:
        """Answer the *request*; from a thread of its own."""
        raise NotImplementedError

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this machine's name, which may take long.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that has gone away is nothing to print a traceback about."""

    def __enter__(self) -> Stub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()


class Request(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    server: Stub
    #: The path without its query.
    route: str
    query: Mapping[str, str]
    #: The JSON that was sent; an empty dict if there was none.
    sent: dict[str, Any]

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.route = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = json.loads(self.rfile.read(length)) if length else {}
        self.server.answer(self)

    do_POST = do_GET

    def reply(self, code: int, body: object, retry_after: int | None = None) -> None:
        """Answer with a status and JSON."""
        data = json.dumps(body).encode()
        self.send_response(code)
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """The worker's log tells what matters."""


#: What a service does to a request instead of answering it.
Trouble = Callable[[Request], None]


def status(code: int, text: str = "", retry_after: int | None = None) -> Trouble:
    """Answer with an error."""
    error = {"error": {"message": text or f"stub: HTTP {code}"}}
    return lambda request: request.reply(code, error, retry_after)


def late(seconds: float) -> Trouble:
    """Answer when nobody waits any more."""

    def answer(request: Request) -> None:
        time.sleep(seconds)
        request.reply(200, {})

    return answer


def trickle(seconds: float) -> Trouble:
    """Send a byte now and then: no read of it takes long, but all of them do."""

    def answer(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            request.wfile.write(b" ")
            time.sleep(0.1)

    return answer


def reset(request: Request) -> None:
    """End the connection as a service does that dies in the middle of a call."""
    linger = struct.pack("ii", 1, 0)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    os.close(request.connection.detach())

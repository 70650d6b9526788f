"""Six services that fail in six ways, over real HTTP on this machine, until they are fixed."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["SERVICES", "Service", "Services"]

#: Fails until the services are fixed.
ALWAYS = 1_000_000

#: Calls of ``mail`` that are answered in a second.
QUOTA = 4
#: How long an answer takes, in seconds.
LATENCY = 0.08
#: How long ``shipping`` takes when it is slow, in seconds: longer than the tasks wait.
SLOW = 0.7
#: How long ``stock`` is down at first, in seconds.
DOWNTIME = 4.0


@dataclass(frozen=True)
class Service:
    """One service, and what is wrong with it."""

    name: str
    #: At most 32 characters: the table has no room for more.
    trouble: str
    #: Its share of the tasks, in percent.
    share: int
    #: How often its calls fail before they succeed: the first call's number, the second's ...
    failures: Sequence[int]


SERVICES = (
    Service("payment", "answers 500 and 503", 24, (0, 1, 2, ALWAYS, 0, 1)),
    Service("shipping", "answers too late", 16, (1, 0, ALWAYS, 0, 2)),
    Service("mail", f"429, Retry-After: 1 ({QUOTA} calls/s)", 20, (0,)),
    Service("stock", "refuses and resets connections", 18, (0, 1, ALWAYS, 0, 2, 0)),
    Service("customer", "400 and 404 to every third", 16, (0, ALWAYS, 0)),
    Service("thumbnail", "kills its caller (out of memory)", 6, (1, ALWAYS, 0)),
)


class Services:
    """The services, and the address where tasks tell what happens to them."""

    def __init__(self, on_report: Callable[[dict[str, Any]], None]) -> None:
        self._on_report = on_report
        self._calls: Counter[tuple[str, int]] = Counter()
        self._mails: deque[float] = deque()
        self._mended = False
        self._lock = threading.Lock()
        self._main = _Server(self)
        # Bound, but not listening: connections are refused, and no other program can take the port.
        self._stock = _Server(self)

    def __enter__(self) -> Services:
        self._main.run()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._main.end()
        self._stock.end()

    @property
    def ledger_url(self) -> str:
        """Where tasks tell what happens to them."""
        return f"{self._main.url}/ledger"

    def urls(self, calls: int) -> dict[str, str]:
        """What *calls* tasks are to call, by task, the services mixed."""
        urls = {}
        wanted = {s.name: 0.0 for s in SERVICES}
        numbers: Counter[str] = Counter()
        for _ in range(calls):
            for service in SERVICES:
                wanted[service.name] += service.share / 100
            name = max(wanted, key=lambda name: wanted[name])
            wanted[name] -= 1
            server = self._stock if name == "stock" else self._main
            urls[f"{name}-{numbers[name]}"] = f"{server.url}/{name}/{numbers[name]}"
            numbers[name] += 1
        return urls

    def open_stock(self) -> None:
        """End the downtime of ``stock``."""
        self._stock.run()

    def fix(self) -> None:
        """From now on every call succeeds."""
        self.open_stock()
        self._mended = True

    def answer(self, request: _Request, name: str, number: int) -> None:
        """Answer call *number* of a service as badly as it has to be."""
        service = next(s for s in SERVICES if s.name == name)
        with self._lock:
            self._calls[name, number] += 1
            calls = self._calls[name, number]
            limited = name == "mail" and self._too_many_mails()
        time.sleep(LATENCY)
        failures = service.failures[number % len(service.failures)]
        if self._mended or not (limited or calls <= failures):
            request.reply(200, "ok")
        elif name == "payment":
            request.reply(503 if (number + calls) % 2 else 500)
        elif name == "shipping":
            time.sleep(SLOW)
            request.reply(200, "too late")
        elif name == "mail":
            request.reply(429, retry_after="1")
        elif name == "stock":
            request.reset()
        elif name == "customer":
            request.reply(404 if number % 2 else 400)
        elif name == "thumbnail":
            request.reply(200, "crash")

    def report(self, body: bytes) -> None:
        """A task tells what happens to it."""
        self._on_report(json.loads(body))

    def _too_many_mails(self) -> bool:
        now = time.monotonic()
        while self._mails and self._mails[0] < now - 1:
            self._mails.popleft()
        if len(self._mails) >= QUOTA:
            return True
        self._mails.append(now)
        return False


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, services: Services) -> None:
        super().__init__(("127.0.0.1", 0), _Request, bind_and_activate=False)
        self.services = services
        self._thread: threading.Thread | None = None
        self.server_bind()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for this machine's name, which may take long.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def run(self) -> None:
        """Listen and answer; calling it again changes nothing."""
        if self._thread is None:
            self.server_activate()
            self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop answering and give the port back."""
        if self._thread is not None:
            self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that has gone away is nothing to print a traceback about."""


class _Request(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        _, name, number = self.path.split("/")
        self.server.services.answer(self, name, int(number))

    def do_POST(self) -> None:
        self.server.services.report(self.rfile.read(int(self.headers["Content-Length"])))
        self.reply(204)

    def reply(self, status: int, text: str = "", retry_after: str | None = None) -> None:
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def reset(self) -> None:
        """End the connection as a service does that dies in the middle of a call."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: Any) -> None:
        """The tasks tell what matters."""

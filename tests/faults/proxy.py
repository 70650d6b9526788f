"""A door between a worker and its server, which a test can shut, slow down or jam."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

__all__ = ["Door"]

#: How much of what was sent last over a connection is remembered, in bytes.
_REMEMBERED = 20_000


class _Pair:
    """A connection through the door: a worker's end, and ours to its server."""

    def __init__(self, theirs: socket.socket, ours: socket.socket) -> None:
        self.theirs = theirs
        self.ours = ours
        #: What was sent last to the server.
        self.sent = b""
        self.flows = threading.Event()
        self.flows.set()


class Door:
    """Listens on a port of its own and passes everything on to *port*.

    ``cut`` closes it: connections end, new ones are refused. ``jam`` leaves it open, but nothing
    passes, as on a network that drops packets; also of some connections alone, as a router does
    that has forgotten them. ``mend`` undoes both.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.slow = 0.0  #: seconds that every piece is held back
        #: What ends the flow of the connection over which it is sent, and in whose midst.
        self._trap, self._cleft = b"", b""
        self._flows = threading.Event()
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.port = 0
        self.mend()

    def mend(self) -> None:
        """Let everything pass."""
        self._trap = self._cleft = b""
        self._flows.set()
        with self._lock:
            for pair in self._pairs:
                pair.flows.set()
        if self._listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(128)
            self.port = listener.getsockname()[1]
            self._listener = listener
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """End every connection and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.flows.set()
            for end in (pair.theirs, pair.ours):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def lead_to(self, port: int) -> None:
        """Pass on to *port* from now on what connects."""
        self._target = port

    def jam(self) -> None:
        """Let nothing pass, and say nothing."""
        self._flows.clear()

    def jam_those(self, *sent: bytes) -> int:
        """Let nothing pass on those of the connections that there are over which one of *sent* has
        been sent to the server lately; how many they are. New ones are not concerned."""
        with self._lock:
            found = [pair for pair in self._pairs if any(word in pair.sent for word in sent)]
        for pair in found:
            pair.flows.clear()
        return len(found)

    def jam_at(self, sent: bytes) -> None:
        """Let nothing pass any more on any connection over which *sent* is about to be sent."""
        self._trap = sent

    def jam_within(self, received: bytes) -> None:
        """Let nothing pass any more on the connection on which *received* comes from the server,
        but for its first half."""
        self._cleft = received

    def close(self) -> None:
        self.cut()
        self._flows.set()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                theirs, _ = listener.accept()
            except OSError:
                return
            try:
                ours = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                theirs.close()
                continue
            ours.settimeout(None)
            pair = _Pair(theirs, ours)
            with self._lock:
                self._pairs.append(pair)
            for here, there in ((theirs, ours), (ours, theirs)):
                threading.Thread(target=self._pump, args=(pair, here, there), daemon=True).start()

    def _pump(self, pair: _Pair, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := here.recv(65536):
                if here is pair.theirs:
                    pair.sent = (pair.sent + piece)[-_REMEMBERED:]
                    if self._trap and self._trap in pair.sent:
                        pair.flows.clear()
                elif self._cleft and (at := piece.find(self._cleft)) >= 0:
                    at += len(self._cleft) // 2
                    self._cleft = b""
                    there.sendall(piece[:at])
                    piece = piece[at:]
                    pair.flows.clear()
                self._flows.wait()
                pair.flows.wait()
                if self.slow:
                    time.sleep(self.slow)
                there.sendall(piece)
        for end in (here, there):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        here.close()  # the other one is closed by the other pump

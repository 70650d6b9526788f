"""A bank on a bad day."""

from __future__ import annotations

import threading

from examples.stub import Request, Stub, Trouble, reset, status

__all__ = ["Bank"]

FOREVER = 1_000


class Bank(Stub):
    """It takes long to serve alice, and does not want to know bob."""

    def __init__(self) -> None:
        super().__init__()
        self.troubles: dict[str, list[Trouble]] = {
            "alice": [status(503), reset, status(429, retry_after=1)],
            "bob": [status(403, "bob's account is frozen")] * FOREVER,
        }
        #: What it has been paid, by customer.
        self.paid: dict[str, str] = {}
        self._lock = threading.Lock()

    def mend(self) -> None:
        """From now on all is well."""
        with self._lock:
            self.troubles.clear()

    def answer(self, request: Request) -> None:
        customer = request.sent["customer"]
        with self._lock:
            troubles = self.troubles.get(customer)
            trouble = troubles.pop(0) if troubles else None
        if trouble is not None:
            trouble(request)
            return
        self.paid[customer] = request.sent["amount"]
        request.reply(200, {})

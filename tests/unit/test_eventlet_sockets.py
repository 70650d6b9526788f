"""What has arrived at a socket of eventlet is seen while another greenlet waits for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

#: Of a TLS socket, but for its encryption: no socket of the standard library's within, a timeout.
SCENE = """
import eventlet
eventlet.monkey_patch()
import socket
from types import SimpleNamespace
from eventlet.hubs import trampoline
from celery_resilience.brokers.rabbitmq.pyamqp import has_arrived, is_alive

theirs, ours = eventlet.patcher.original("socket").socketpair()
ours.settimeout(5)
read = eventlet.spawn(trampoline, ours, read=True, timeout=5)  # as the worker's loop
eventlet.sleep(0)
transport = SimpleNamespace(sock=ours, _read_buffer=b"")
connection = SimpleNamespace(sock=ours, transport=transport)
channel = SimpleNamespace(connection=connection, channel_id=1)
assert is_alive(SimpleNamespace(channel=channel))
assert not has_arrived(connection)
theirs.sendall(b"x")
read.wait()
assert has_arrived(connection)
assert is_alive(SimpleNamespace(channel=channel))
ours.recv(1)
theirs.close()
assert not is_alive(SimpleNamespace(channel=channel))
print("seen")
"""


@pytest.mark.skipif(find_spec("eventlet") is None, reason="eventlet is not installed")
def test_look_does_not_disturb_the_greenlet_that_waits() -> None:
    """eventlet throws into the one or the other if both wait for the same descriptor."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCENE], capture_output=True, text=True, timeout=60
    )
    assert (ran.stdout, ran.returncode) == ("seen\n", 0), ran.stderr

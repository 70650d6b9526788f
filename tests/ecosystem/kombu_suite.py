"""kombu's own tests of its Redis transport, on kombu's and on ours, side by side.

``python -m tests.ecosystem.kombu_suite`` takes them from the source distribution of the kombu that
is installed and lists every test that ends otherwise with ours. :data:`EXPLAINED` has the reasons;
anything else makes the exit code 1. It takes five minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from celery_resilience.testing.server import EmbeddedServer
from tests.ecosystem.__main__ import differences, outcomes, unpacked
from tests.worker import ROOT

EXPLAINED = {
    "test_RedisBrpopHealthCheck": "it looks at the parts of kombu's BRPOP; ours sends none",
    "test_event_loop_consumes_after_connection_reconnect": "somebody else replaces the socket "
    "while an answer is on its way, which redis-py does not do to ours",
}
_OPTIONS = ["python_classes=test_* Test*", "markers=env: of the broker\nflaky: run again"]


def run(tests: Path, report: Path, ours: bool) -> dict[str, str]:
    """How each test ended."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60"]
    for option in _OPTIONS:
        command += ["-o", option]
    command += ["-p", "tests.ecosystem.takes"] if ours else []
    with EmbeddedServer(port=0) as redis, report.with_suffix(".log").open("wb") as log:
        env = {
            **os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(ROOT)]),
            "REDIS_HOST": "127.0.0.1", "REDIS_6379_TCP": str(redis.port),
        }  # fmt: skip
        subprocess.run(
            [*command, f"--junitxml={report}", "t/integration/test_redis.py"], cwd=tests, env=env,
            check=False, stdout=log, stderr=log,
        )  # fmt: skip
    return outcomes(report)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = unpacked(folder, "kombu")
        tests = folder / "tests"
        tests.mkdir()
        (source / "t").rename(tests / "t")  # kombu is the one that is installed
        stock = run(tests, folder / "stock.xml", False)
        ours = run(tests, folder / "ours.xml", True)
    unexplained = 0
    for name, (on_kombus, on_ours) in differences(stock, ours).items():
        why = next((why for part, why in EXPLAINED.items() if part in name), None)
        unexplained += why is None
        print(f"{name}: {on_kombus} on kombu's, {on_ours} on ours: {why or 'NOT EXPLAINED'}")
    print(f"{len(stock)} tests on kombu's, {len(ours)} on ours, {unexplained} not explained")
    return 1 if unexplained or not ours else 0


if __name__ == "__main__":
    sys.exit(main())

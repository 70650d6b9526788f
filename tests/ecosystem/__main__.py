"""Celery's own integration tests, on stock Celery and with ``install(app)``, side by side.

``python -m tests.ecosystem --broker redis`` takes the tests from the source distribution of the
Celery that is installed, runs them twice at once, each time on servers of its own, and lists every
test that ends otherwise with us. What is explained in ``celery_differences.toml`` is listed with
its reason; anything else makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import celery

from celery_resilience.testing.server import EmbeddedServer
from tests import rabbitmq4
from tests.worker import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPLAINED = Path(__file__).with_name("celery_differences.toml")
MARKERS = "celery: of the plugin\nflaky: run again\ntimeout: at most\namqp: needs RabbitMQ"


def unpacked(folder: Path, package: str = "celery") -> Path:
    """The source distribution of the *package* that is installed, below *folder*."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    wanted = f"{package}=={version(package)}"
    subprocess.run([*pip, "--dest", str(folder), wanted], check=True)
    (archive,) = folder.glob(f"{package}-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def servers(stack: contextlib.ExitStack, broker: str) -> dict[str, str]:
    """A broker and a result store for one run, as Celery's tests ask for them."""
    redis = stack.enter_context(EmbeddedServer(port=0))
    url = redis.broker_url.removesuffix("/0")
    if broker == "rabbitmq":
        rabbit = rabbitmq4.server(os.environ.get("RABBITMQ", ""))
        stack.callback(rabbit.stop)
        rabbit.start()
    return {
        "TEST_BROKER": rabbit.url() if broker == "rabbitmq" else f"{url}/0",
        "TEST_BACKEND": f"{url}/1",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis.port),
    }


def run(
    folder: Path, env: Mapping[str, str], plugins: Sequence[str], options: Sequence[str]
) -> dict[str, str]:
    """How each test ended: passed, failed or skipped; report and log are kept in *folder*."""
    source = unpacked(folder)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:valkey", "-p", "no:cacheprovider"]
    for plugin in ("celery.contrib.pytest", *plugins):
        command += ["-p", plugin]
    report = folder / "report.xml"
    command += ["-o", f"markers={MARKERS}", "--timeout", "300", f"--junitxml={report}"]
    path = os.pathsep.join([str(source), str(ROOT)])
    # Some tests run "celery" as a command.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with (folder / "log").open("wb") as log:
        subprocess.run(
            [*command, *options], cwd=source, check=False,
            env={**os.environ, **env, "PYTHONPATH": path, "PATH": programs}, stdout=log, stderr=log,
        )  # fmt: skip
    return outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    ended: dict[str, str] = {}
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        tags = {child.tag for child in case}
        how = (
            "failed"
            if tags & {"failure", "error"}
            else "skipped"
            if "skipped" in tags
            else "passed"
        )
        ended[name] = how  # a test that is run again is there again, its last run last
    return ended


def differences(stock: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The tests that end otherwise with us, and how: on stock Celery, with us."""
    names = sorted(stock.keys() | ours.keys())
    pairs = {name: (stock.get(name, "not run"), ours.get(name, "not run")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem", description=__doc__)
    parser.add_argument(
        "--broker", choices=["redis", "resilient-redis", "rabbitmq"], default="redis"
    )
    parser.add_argument("--keep", type=Path, help="a folder for reports and logs")
    parser.add_argument("tests", nargs="*", help="t/integration/test_tasks.py ...; all by default")
    options = parser.parse_args(arguments)
    explained = tomllib.loads(EXPLAINED.read_text())
    left_out = explained.get(options.broker, {})
    chosen = [*(options.tests or ["t/integration"]), *(f"--deselect={name}" for name in left_out)]
    sides = {"stock": (), "ours": ("tests.ecosystem.installs",)}
    print(f"Celery {celery.__version__}, stock and with install(app)", flush=True)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        keep = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        envs = {side: servers(stack, options.broker) for side in sides}
        if options.broker == "resilient-redis":
            envs["ours"]["TEST_BROKER"] = f"resilient-{envs['ours']['TEST_BROKER']}"
        for side in sides:
            (keep / side).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as threads:
            stock, ours = threads.map(
                lambda side: run(keep / side, envs[side], sides[side], chosen), sides
            )
    for name, why in left_out.items():
        print(f"{name}: not run: {why}")
    unexplained = 0
    for name, (on_stock, with_us) in differences(stock, ours).items():
        why = explained.get(name)
        unexplained += why is None
        print(f"{name}: {on_stock} on stock, {with_us} with us: {why or 'NOT EXPLAINED'}")
    print(
        f"{len(stock)} tests on stock, {len(ours)} with us, {unexplained} not explained,"
        f" {time.monotonic() - began:.0f} s"
    )
    return 1 if unexplained or not ours else 0


if __name__ == "__main__":
    sys.exit(main())

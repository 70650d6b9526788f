"""The jobs as cron ran them: plain functions that know nothing of Celery, and retry nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

__all__ = ["check_price", "fetch_trends", "merge_trends", "watch_releases"]

SCRIPT = Path(__file__).with_name("watch_releases.sh")
#: How long a service may take to answer, in seconds.
TIMEOUT = 1.0

_http = build_opener(ProxyHandler({}))


def check_price(url: str) -> float:
    """What the shop asks for it now."""
    with _http.open(url, timeout=TIMEOUT) as answer:
        return float(json.load(answer)["price"])


def fetch_trends(url: str) -> list[str]:
    """What one source talks about."""
    with _http.open(url, timeout=TIMEOUT) as answer:
        return [str(topic) for topic in json.load(answer)]


def merge_trends(found: Iterable[list[str]]) -> list[str]:
    """What most sources talk about, first."""
    counts = Counter(topic for topics in found for topic in topics)
    return [topic for topic, _ in counts.most_common()]


def watch_releases(url: str) -> None:
    """Run the script, which says by its exit code how it went."""
    subprocess.run(["sh", str(SCRIPT), sys.executable, url], check=True, timeout=10)

"""What the doctor looks for in a Redis broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from celery_resilience.brokers.held import RENEW, plain_client
from celery_resilience.brokers.lua import KEYS
from celery_resilience.brokers.rights import missing
from celery_resilience.diagnosis import Check, Diagnosis, Finding

__all__ = ["OVERDUE", "REDIS_CHECKS"]

#: What a living worker of ours would have done so long ago, none does, in seconds.
OVERDUE = 30.0
#: The rights on so many queues are looked at.
_QUEUES = 20


def rights(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Commands and keys that the broker's user is refused."""
    from redis.exceptions import ResponseError

    if diagnosis.driver != "redis":
        return
    client, prefix = _client(diagnosis)
    queues = (*diagnosis.dead_letter_queues, *diagnosis.queues)[:_QUEUES]
    try:
        refused = missing(client, prefix, queues)
    except ResponseError as exc:
        diagnosis.unchecked.append(f"what the user of the broker may do: {exc}")
        return
    if refused:
        told = "; ".join(
            f"{', '.join(commands)}{f' on {key}' if key else ''}"
            for key, commands in refused.items()
        )
        yield Finding(
            "rights",
            f"Redis refuses this user: {told}",
            "workers stop, or what they settle waits until it is allowed",
            "ACL SETUSER with the rights that docs/operating.md lists",
        )
    try:
        client.info("server")
    except ResponseError:
        diagnosis.notes.append(
            "INFO is not allowed: since when the server is up is not known, so what dead workers "
            "hold is given back some seconds later"
        )


def held_by_the_dead(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Messages that dead workers hold, which a living one of ours would have given back."""
    if diagnosis.driver != "redis":
        return
    orphans = diagnosis.retries.orphans(over=OVERDUE)
    if orphans:
        yield Finding(
            "held_by_the_dead",
            f"{sum(orphans.values()):,} messages are held by {len(orphans)} of our workers that "
            "have died",
            "a living worker of ours would have given them back within seconds",
            f"start a worker of ours; or: {diagnosis.command} retries release --all",
        )
    unowned = {w: n for w, n in _unowned(diagnosis).items() if w not in orphans}
    if unowned:  # a worker that lives registers again within seconds
        time.sleep(RENEW + 1)
        again = _unowned(diagnosis)
        unowned = {worker: again[worker] for worker in unowned if worker in again}
    if unowned:
        yield Finding(
            "held_by_the_unknown",
            f"{sum(unowned.values()):,} messages are held by {len(unowned)} workers that no other "
            "knows of",
            "their lease was forgotten before they took these, and they have died since",
            f"start a worker of ours; or: {diagnosis.command} retries release --all",
        )


def without_a_lease(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Workers that run tasks of ours and do not settle what they come to."""
    if diagnosis.driver != "redis" or not diagnosis.workers:
        return
    answered = [name for name, worker in diagnosis.workers.items() if worker.ours]
    leases = diagnosis.retries.workers()
    if leases < len(answered):
        yield Finding(
            "without_a_lease",
            f"{len(answered)} workers run tasks of ours ({', '.join(answered)}), and {leases} of "
            "them hold a lease",
            "the others do not settle what fails there: celery_resilience came to them after they "
            "had started, or they run with --no-resilience",
            "call install(app) in the module that -A names, before the worker starts; restart them",
        )


def takes_which_way(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Which transport takes from the queues, where there is more than one."""
    ways: dict[str, list[str]] = {}
    for name, worker in (diagnosis.workers or {}).items():
        if worker.transport and worker.queues:
            ways.setdefault(worker.transport, []).append(name)
    if diagnosis.driver == "redis" and len(ways) > 1:
        told = ", ".join(f"{len(names)} by {way}://" for way, names in sorted(ways.items()))
        diagnosis.notes.append(
            f"workers take {told}: of a queue that both take from, those by redis:// are served "
            "first, and the others get what these have no room for"
        )
    yield from ()


def _client(diagnosis: Diagnosis) -> tuple[Any, str]:
    channel = diagnosis.reached[0].default_channel
    return plain_client(channel, single=True), channel.global_keyprefix or ""


def _unowned(diagnosis: Diagnosis) -> dict[str, int]:
    """How many messages each worker holds that is not among those that are known."""
    from redis.exceptions import ResponseError

    client, prefix = _client(diagnosis)
    begin = f"{prefix}{KEYS}held:"
    try:
        known = {name.decode() for name in client.zrange(f"{prefix}{KEYS}workers", 0, -1)}
        keys = client.scan_iter(match=f"{_literal(begin)}*", count=1000)
        workers = [key.decode()[len(begin) :] for key in keys]
        held = {w: int(client.hlen(f"{begin}{w}")) for w in workers if w not in known}
    except ResponseError as exc:
        problem = f"what workers hold that no other knows of: {exc}"
        if problem not in diagnosis.unchecked:
            diagnosis.unchecked.append(problem)
        return {}
    return {worker: number for worker, number in held.items() if number}


def _literal(text: str) -> str:
    """*text* as a pattern of Redis's that matches nothing else."""
    return "".join(f"\\{sign}" if sign in "*?[]\\" else sign for sign in text)


REDIS_CHECKS: tuple[Check, ...] = (rights, held_by_the_dead, without_a_lease, takes_which_way)

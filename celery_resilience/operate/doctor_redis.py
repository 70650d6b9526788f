"""The doctor's checks of a Redis broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_resilience.brokers.redis.leases import plain_client
from celery_resilience.brokers.redis.rights import refused
from celery_resilience.operate.diagnosis import Check, Diagnosis, Finding

__all__ = ["OVERDUE", "REDIS_CHECKS"]

#: After so many seconds a living worker of ours would have done it.
OVERDUE = 30.0
#: The rights on so many queues are checked.
_QUEUES = 20


def rights(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Commands and keys that the broker's user is refused."""
    from redis.exceptions import ResponseError

    client, prefix = _client(diagnosis)
    queues = (*diagnosis.dead_letter_queues, *diagnosis.queues)[:_QUEUES]
    try:
        told = refused(client, prefix, queues)
    except ResponseError as exc:
        diagnosis.unchecked.append(f"the permissions of the broker's user: {exc}")
        return
    if told:
        yield Finding(
            "rights",
            f"Redis refuses this user: {told}",
            "workers stop, or their settlements are retried until it is allowed",
            "ACL SETUSER with the rules that docs/security.md lists",
        )
    try:
        client.info("server")
    except ResponseError:
        diagnosis.notes.append(
            "INFO is not allowed: the server's uptime is unknown, so messages held by dead workers "
            "are requeued some seconds later"
        )


def held_by_the_dead(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Messages held by dead workers, which a living one of ours would have requeued."""
    from redis.exceptions import ResponseError

    client, _ = _client(diagnosis)
    try:
        client.scan(0, count=1)
    except ResponseError as exc:
        diagnosis.unchecked.append(f"messages held by workers that no other worker knows: {exc}")
    orphans = diagnosis.retries.orphans(over=OVERDUE)
    if orphans:
        yield Finding(
            "held_by_the_dead",
            f"{sum(orphans.values()):,} messages are held by {len(orphans)} workers that died, "
            "or that no other worker knows",
            "a living worker with celery_resilience would have requeued them within seconds",
            f"start a worker with celery_resilience; or: {diagnosis.command} retries release --all",
        )


def without_a_lease(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Workers that run covered tasks and do not settle their failures."""
    if not diagnosis.workers:
        return
    answered = [name for name, worker in diagnosis.workers.items() if worker.ours]
    leases = diagnosis.retries.workers()
    if leases < len(answered):
        yield Finding(
            "without_a_lease",
            f"{len(answered)} workers run covered tasks ({', '.join(answered)}), but only {leases} "
            "hold a lease",
            "the others do not settle failures: celery_resilience was loaded after they had "
            "started, or they run with --no-resilience",
            "call install(app) in the module that -A names, and restart them",
        )


def takes_which_way(diagnosis: Diagnosis) -> Iterator[Finding]:
    """Which transport takes from the queues, and why it is not ours."""
    workers = {name: each for name, each in (diagnosis.workers or {}).items() if each.queues}
    kombus = [name for name, each in workers.items() if each.transport == "kombu"]
    own = sum(each.transport == "own" for each in workers.values())
    if kombus and own:
        diagnosis.notes.append(
            f"{own} workers take through our own transport, {len(kombus)} through kombu's "
            f"({', '.join(kombus)}): on a shared queue Redis serves the latter first, and the "
            "others get what these have no room for"
        )
    for name in kombus:
        if workers[name].why:
            diagnosis.notes.append(
                f"{name} takes through kombu's transport, which loses the message being taken when "
                f"the worker is killed: {workers[name].why}"
            )
    yield from ()


def _client(diagnosis: Diagnosis) -> tuple[Any, str]:
    channel = diagnosis.reached[0].default_channel
    return plain_client(channel, single=True), channel.global_keyprefix or ""


REDIS_CHECKS: tuple[Check, ...] = (rights, held_by_the_dead, without_a_lease, takes_which_way)

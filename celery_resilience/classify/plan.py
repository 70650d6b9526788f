"""Which rules an exception class is put to, in which order; worked out once per class."""

from __future__ import annotations

from typing import NamedTuple

from celery_resilience.classify import explicit as protocol
from celery_resilience.classify import http, wrappers
from celery_resilience.classify.family import Family, Inner, Look, Reader
from celery_resilience.classify.finding import Finding
from celery_resilience.classify.libraries import (
    brokers,
    clouds,
    databases,
    processes,
    services,
    stores,
    system,
)
from celery_resilience.classify.libraries import (
    grpc as rpc,
)
from celery_resilience.classify.libraries import (
    http_clients as webclients,
)
from celery_resilience.classify.libraries import (
    python as code,
)
from celery_resilience.classify.reading import Lineage, lineage
from celery_resilience.classify.verdict import Kind, Verdict

__all__ = ["BUILTINS", "LIBRARIES", "Plan", "family_of_root", "named", "plan_of", "unknown"]

CONTROL_FLOW = frozenset(
    {
        ("celery", "Retry"),
        ("celery", "Ignore"),
        ("celery", "Reject"),
        ("celery", "WorkerShutdown"),
        ("celery", "WorkerTerminate"),
        ("billiard", "Terminated"),
    }
)
_CONTROL_FLOW = Verdict(
    Kind.UNKNOWN, "control_flow", "task", "Celery's own signal to the worker: let it through"
)

LIBRARIES: tuple[Family, ...] = (
    protocol.TASK,
    webclients.HTTPX,
    webclients.REQUESTS,
    webclients.URLLIB3,
    webclients.URLLIB,
    webclients.AIOHTTP,
    services.STAINLESS,
    services.STRIPE,
    services.SLACK,
    services.GITHUB,
    services.TWILIO,
    services.SEARCH,
    clouds.BOTOCORE,
    clouds.GOOGLE,
    clouds.GOOGLE_CLIENT,
    clouds.AZURE,
    rpc.GRPC,
    stores.REDIS,
    stores.MONGO,
    databases.POSTGRES,
    databases.MYSQL,
    databases.SQLITE,
    databases.SQLALCHEMY,
    databases.DJANGO,
    brokers.KOMBU,
    brokers.AMQP,
    brokers.KAFKA,
    brokers.CONFLUENT,
    brokers.PARAMIKO,
    processes.BILLIARD,
    processes.CELERY,
    processes.SUBPROCESS,
    processes.SMTP,
    system.DNS,
    system.TLS,
    system.ASYNCIO,
    wrappers.TENACITY,
)
#: Asked after every library: what a library raises may derive from these.
BUILTINS: tuple[Family, ...] = (system.NETWORK, system.OS, code.MEMORY, code.CODE)

_BY_ROOT = {root: family for family in LIBRARIES for root in family.roots}
_BUILTIN_NAMES = {
    (root, name): (family, finding)
    for family in BUILTINS
    for root in family.roots
    for name, finding in family.classes.items()
}
#: SDKs that the same generator wrote have the same classes, whatever they are called.
_STAINLESS = frozenset({"APIStatusError", "APIConnectionError"})
_GROUPS = frozenset({("builtins", "BaseExceptionGroup"), ("exceptiongroup", "BaseExceptionGroup")})


class Plan(NamedTuple):
    """The rules for one class: the first that gives a verdict decides."""

    cls: type
    control_flow: bool
    #: The exception's own word is asked for first.
    may_speak: bool
    rules: tuple[Reader, ...]
    #: The verdict when no rule gives one.
    otherwise: Verdict


# Keyed by id: a metaclass may define equality or hashing as it likes. The plan keeps its class
# alive, so no other class gets that id.
_plans: dict[int, Plan] = {}
_MOST = 2000  # classes remembered; a program that makes them on the fly must not grow for ever


def plan_of(cls: type) -> Plan:
    """The plan for exceptions of *cls*."""
    plan = _plans.get(id(cls))
    if plan is None:
        plan = _work_out(cls)
        if len(_plans) >= _MOST:
            _plans.clear()
        _plans[id(cls)] = plan
    return plan


def named(root: str, name: str) -> Verdict | None:
    """What a class of that root module and name deserves by its name alone."""
    return _by_library(((root, name),)) or _by_builtin(((root, name),))


def family_of_root(root: str) -> Family | None:
    """The family whose classes live in that root module."""
    return _BY_ROOT.get(root)


def _work_out(cls: type) -> Plan:
    ancestry = lineage(cls)
    if any(base in CONTROL_FLOW for base in ancestry):
        return Plan(cls, True, False, (), _CONTROL_FLOW)
    if wrappers.is_certificate(cls):
        return Plan(cls, False, True, (), wrappers.CERTIFICATE.verdict("tls.certificate"))
    by_library = _by_library(ancestry)
    is_group = any(base in _GROUPS for base in ancestry)
    if not issubclass(cls, Exception) and not is_group and by_library is None:
        finding = code.EXITS.classes.get(ancestry[0][1], code.EXITS.classes["BaseException"])
        return Plan(cls, False, False, (), finding.verdict(f"exit.{ancestry[0][1]}"))
    families = _families(ancestry)
    if protocol.TASK in families and by_library is not None:
        return Plan(cls, False, False, (protocol.TASK.read,), by_library)  # type: ignore[arg-type]

    rules: list[Reader] = [_certificate]
    if is_group:
        rules.append(wrappers.GROUP.read)  # type: ignore[arg-type]
    rules.extend(_unwrap(family.inner) for family in families if family.inner is not None)
    if by_library is None or by_library.kind is not Kind.PERMANENT:
        rules.append(wrappers.argument)
    rules.extend(family.read for family in families if family.read is not None)
    if all(family.http for family in families):
        rules.append(http.answer)
    if by_library is not None:
        return Plan(cls, False, True, tuple(rules), by_library)
    if issubclass(cls, OSError):
        rules.append(system.read_errno)
    by_builtin = _by_builtin(ancestry)
    if by_builtin is not None:
        return Plan(cls, False, True, tuple(rules), by_builtin)
    rules.append(wrappers.cause)
    return Plan(cls, False, True, tuple(rules), unknown(ancestry[0][1]))


def _certificate(exception: BaseException, look: Look) -> Verdict | None:
    return wrappers.certificate(exception, look) if wrappers.has_more(exception) else None


def _unwrap(inner: Inner) -> Reader:
    def unwrap(exception: BaseException, look: Look) -> Verdict | None:
        for one in inner(exception):
            verdict = look.into(one)
            if verdict is not None:
                return verdict
        return None

    return unwrap


def _families(ancestry: Lineage) -> list[Family]:
    found = [_BY_ROOT[root] for root, _ in ancestry if root in _BY_ROOT]
    if not found and any(name in _STAINLESS for _, name in ancestry):
        found.append(services.STAINLESS)
    return [family for at, family in enumerate(found) if family not in found[:at]]


def _by_library(ancestry: Lineage) -> Verdict | None:
    for root, name in ancestry:
        family = _BY_ROOT.get(root)
        if family is not None and name in family.classes:
            return _verdict(family, root, name, family.classes[name])
    families = _families(ancestry)
    if families == [services.STAINLESS]:
        for root, name in ancestry:
            if name in services.STAINLESS.classes:
                return _verdict(families[0], root, name, services.STAINLESS.classes[name])
    return None


def _by_builtin(ancestry: Lineage) -> Verdict | None:
    for base in ancestry:
        if base in _BUILTIN_NAMES:
            family, finding = _BUILTIN_NAMES[base]
            return _verdict(family, base[0], base[1], finding)
    return None


def _verdict(family: Family, root: str, name: str, finding: Finding) -> Verdict:
    return finding.verdict(f"{family.prefix or root}.{name}")


def unknown(name: str) -> Verdict:
    """The verdict where no rule has an answer."""
    return Verdict(Kind.UNKNOWN, "unknown", "unknown", f"no rule knows {name}: the policy decides")

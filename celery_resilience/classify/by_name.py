"""Classifying a name: what would such an exception deserve?"""

from __future__ import annotations

import builtins
from dataclasses import replace
from importlib import import_module

from celery_resilience.classify.classifier import classify, examine
from celery_resilience.classify.family import Look
from celery_resilience.classify.http import by_status
from celery_resilience.classify.plan import family_of_root, named, unknown
from celery_resilience.classify.verdict import Kind, Verdict
from celery_resilience.errors import did_you_mean

__all__ = ["classify_name", "exception_named"]

_EXPECTED = (
    "give a full dotted name, as in requests.exceptions.Timeout, or a status, as in http:503"
)


def classify_name(name: str) -> Verdict:
    """The verdict on an exception of which only the name is known, or on a status: ``http:503``.

    The class is imported if it can be; else its name alone is looked up. What an instance would
    carry (a status, a code) is not known here: where that decides, the hint says so.
    """
    if name.startswith("http:"):
        return _status(name)
    root, last = name.partition(".")[0], name.rpartition(".")[2]
    cls = exception_named(name)
    by_name = named(root, last) or unknown(last)
    verdict = by_name if cls is None else classify(_instance(cls))
    family = family_of_root(root)
    if verdict.kind is not Kind.UNKNOWN or verdict.rule == "control_flow":
        return verdict
    if family is not None:
        return replace(verdict, hint=f"it depends on what the exception carries: {family.reads}")
    if cls is None:
        raise ValueError(
            f"{name!r} can't be imported, and no rule knows it by name: check the spelling, or "
            f"{_EXPECTED}"
        )
    return verdict


def _status(name: str) -> Verdict:
    written = name[len("http:") :]
    status = int(written) if written.isascii() and written.isdecimal() and len(written) == 3 else 0
    verdict = by_status(status, {}, Look(None, examine))
    if verdict is None:
        raise ValueError(f"{name!r} is no status of a failure: give one from 300 to 599: http:503")
    return verdict


def exception_named(name: str) -> type[BaseException] | None:
    """The class of that dotted name, None if its library is not installed.

    Raises ValueError for what is no name, and for a name that means something else.
    """
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"{name!r} is not the name of an exception: {_EXPECTED}")
    if len(parts) == 1:
        return _exception(getattr(builtins, name, None), name) if hasattr(builtins, name) else None
    for at in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:at])
        try:
            found: object = import_module(module_name)
        except ModuleNotFoundError:
            continue
        except (Exception, SystemExit) as exc:
            raise ValueError(f"{name!r}: importing {module_name} failed: {exc!r}") from exc
        for part in parts[at:]:
            if not hasattr(found, part):
                hint = did_you_mean(part, dir(found), shown=str)
                raise ValueError(f"{name!r}: {module_name} has no {part!r}{hint}; {_EXPECTED}")
            found = getattr(found, part)
        return _exception(found, name)
    return None


def _exception(found: object, name: str) -> type[BaseException]:
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    raise ValueError(f"{name!r} is not an exception class but {found!r}: {_EXPECTED}")


def _instance(cls: type[BaseException]) -> BaseException:
    try:
        return cls()
    except Exception:
        return cls.__new__(cls)

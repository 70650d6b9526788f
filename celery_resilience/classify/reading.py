"""Reading what strangers wrote: nothing here raises, whatever a property does.

An exception's attributes may be properties that raise anything, and its values may be of any type.
"""

from __future__ import annotations

from datetime import timedelta
from math import isfinite

__all__ = ["arguments", "called", "duration", "lineage", "number", "peek", "text"]

Lineage = tuple[tuple[str, str], ...]

# The C slots themselves: a metaclass or a class body can replace what the attribute would give.
_mro = type.__dict__["__mro__"].__get__
_name = type.__dict__["__name__"].__get__
_module = type.__dict__["__module__"].__get__
arguments = BaseException.__dict__["args"].__get__
cause_of = BaseException.__dict__["__cause__"].__get__
context_of = BaseException.__dict__["__context__"].__get__
traceback_of = BaseException.__dict__["__traceback__"].__get__
context_is_suppressed = BaseException.__dict__["__suppress_context__"].__get__


def peek(owner: object, name: str, default: object = None) -> object:
    """An attribute, or *default* where it is missing or reading it raises anything at all."""
    try:
        return getattr(owner, name, default)
    except BaseException:
        return default


def called(owner: object, name: str, *args: object) -> object:
    """What a method gives, or None where there is no such method or it raises."""
    try:
        return getattr(owner, name)(*args)
    except BaseException:
        return None


def entry(owner: object, key: object) -> object:
    """What ``owner[key]`` gives, or None where it gives nothing or raises."""
    try:
        return owner[key]  # type: ignore[index]
    except BaseException:
        return None


def number(value: object) -> int | None:
    """A whole number as a plain int; None for anything else, booleans included."""
    cls = type(value)
    if cls is int:
        return value  # type: ignore[return-value]
    if issubclass(cls, int) and cls is not bool:
        return int.__int__(value)  # type: ignore[arg-type]
    return None


def text(value: object) -> str | None:
    """A string or bytes as a plain str, the first item of a list of them, a number as written."""
    cls = type(value)
    if cls is str:
        return value  # type: ignore[return-value]
    if issubclass(cls, str):
        return str.__str__(value)
    if issubclass(cls, bytes):
        return bytes.decode(value, "latin-1")  # type: ignore[arg-type]
    if cls is int or cls is float:
        try:
            return str(value)
        except ValueError:  # an int of more digits than Python writes
            return None
    if (cls is list or cls is tuple) and len(value) > 0 and not nested(value[0]):  # type: ignore
        return text(value[0])  # type: ignore[index]
    return None


def nested(value: object) -> bool:
    """A list inside a list: no header is written so, and it could contain itself."""
    return type(value) in (list, tuple)


def duration(value: object) -> float | None:
    """A number or a timedelta as seconds; None for anything else, below zero or not finite."""
    cls = type(value)
    try:
        if issubclass(cls, timedelta):
            seconds = timedelta.total_seconds(value)  # type: ignore[arg-type]
        elif issubclass(cls, float):
            seconds = float.__float__(value)  # type: ignore[arg-type]
        elif issubclass(cls, int) and cls is not bool:
            seconds = float(int.__int__(value))  # type: ignore[arg-type]
        else:
            return None
    except OverflowError:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def lineage(cls: type) -> Lineage:
    """(Root module, class name) of a class and of its bases, nearest first."""
    return tuple((_root(base), _name(base)) for base in _mro(cls))


def _root(cls: type) -> str:
    try:
        module = _module(cls)
    except BaseException:
        return ""
    return module.partition(".")[0] if isinstance(module, str) else ""

"""What Python itself raises. Asked last: libraries derive their own errors from these."""

from __future__ import annotations

from celery_resilience.classify.family import Family, each
from celery_resilience.classify.finding import permanent, transient

__all__ = ["CODE", "EXITS", "MEMORY"]


def _bug(says: str) -> str:
    return f"{says}; fix the code or its input, then replay"


CODE = Family(
    name="Python bugs",
    roots=frozenset({"builtins"}),
    reads="class",
    prefix="code",
    http=False,
    classes={
        "TypeError": permanent("code", _bug("a value of the wrong type")),
        "AttributeError": permanent("code", _bug("an attribute that is not there")),
        "NameError": permanent("code", _bug("a name that is not defined")),
        "ModuleNotFoundError": permanent("code", "a module is not installed on this worker"),
        "ImportError": permanent("code", "an import failed; check what this worker has installed"),
        "SyntaxError": permanent("code", _bug("source that is not Python")),
        "AssertionError": permanent("code", _bug("an assertion does not hold")),
        "KeyError": permanent("code", _bug("a key that is not there")),
        "IndexError": permanent("code", _bug("an index out of range")),
        "LookupError": permanent("code", _bug("something that is not there")),
        "ZeroDivisionError": permanent("code", _bug("a division by zero")),
        "ArithmeticError": permanent("code", _bug("a calculation failed")),
        "UnicodeError": permanent("code", _bug("text that can't be encoded or decoded")),
        "ValueError": permanent("code", _bug("a value that is not acceptable")),
        "NotImplementedError": permanent("code", _bug("something is not written yet")),
        "RecursionError": permanent("code", _bug("recursion without end")),
    },
)

MEMORY = Family(
    name="memory",
    roots=frozenset({"builtins"}),
    reads="class",
    prefix="memory",
    http=False,
    classes={
        "MemoryError": transient(
            "memory", "out of memory; give the task less or the worker more", 2
        )
    },
)

#: What would end the process and is not an Exception; the worker stays up.
EXITS = Family(
    name="exits",
    roots=frozenset({"builtins", "asyncio"}),
    reads="class; everything that is no Exception",
    prefix="exit",
    http=False,
    classes={
        **each(
            permanent("process", "the task tried to end its process; find out why"),
            "SystemExit",
            "KeyboardInterrupt",
            "GeneratorExit",
            "BaseException",
        ),
        "CancelledError": permanent("process", "the task was cancelled from inside; find out why"),
    },
)

"""``python -m tests.apps.eagerly``: every row of the compatibility suite, in this process.

Each is sent to every side while ``task_always_eager`` is set, without and with
``task_eager_propagates``; and its task is called as a function. What that comes to is appended to
the record like everything else, as ``ends``.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.apps import compat
from tests.integration.test_compatibility import ROWS, SIDES, Row, told

MODES = ("eager", "propagates", "called")
#: Limits and exits are a worker's affair, and so is most of what differs on purpose.
EAGER = [row for row in ROWS if row.everywhere and not (row.differs and row.differs.alone)]


def end_of(call: Any) -> Any:
    """What a call comes to: the state and result of an EagerResult, a value, or an error."""
    try:
        result = call()
    except BaseException as exc:
        return ["raised", type(exc).__name__, compat.what(getattr(exc, "exc", None))]
    results = getattr(result, "results", None) or [result]
    return [[getattr(r, "state", ""), compat.what(getattr(r, "result", r))] for r in results]


def in_mode(row: Row, side: str, mode: str) -> None:
    client: Any = SimpleNamespace(app=compat.app)
    task, id_ = compat.app.tasks.get(f"{side}.{row.task}"), f"{side}|{row.name}/{mode}|0"
    compat.app.conf.task_eager_propagates = mode == "propagates"
    if row.send is not None:
        end = end_of(lambda: row.send(client, side))
    elif mode == "called":
        # What it records has no id.
        end = end_of(lambda: task(*row.args, **row.kwargs))
    else:
        options = {**told(client, id_), **row.options}
        end = end_of(lambda: task.apply_async(row.args, row.kwargs, task_id=id_, **options))
    compat.record(id_, "ends", end)


if __name__ == "__main__":
    compat.app.conf.update(task_always_eager=True, task_store_eager_result=True)
    for row in EAGER:
        for side in SIDES:
            for mode in MODES:
                in_mode(row, side, mode)

"""What a user of Redis has to be allowed (ACL), and what one is not.

The list is that of workers, commands and senders together, kombu's own needs included; a test runs
all three under a user who is allowed this and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from celery_resilience.brokers.redis.scripts import KEYS

__all__ = [
    "CHANNELS",
    "COMMANDS",
    "KEY_PATTERNS",
    "acl",
    "lacking",
    "missing",
    "refused",
    "told",
]

#: What is done to keys of ours: the key without its prefix, and each command with arguments that
#: would change nothing. Redis asks for the right when a command is queued in a transaction.
_OURS: dict[str, str] = {
    "workers": "ZADD k 1 m|ZREM k m|ZSCORE k m|ZCARD k|ZRANGE k 0 0|ZRANGEBYSCORE k 0 0",
    "held:none": "HSET k f v|HDEL k f|HGET k f|HEXISTS k f|HLEN k|HSCAN k 0|EXISTS k",
    "takes": "HINCRBY k f 1|HSET k f v|HGET k f|HDEL k f",
    "dead": "ZADD k 1 m|ZREM k m|ZRANGEBYSCORE k 0 0",
    "waiting": "ZADD k 1 m|ZREM k m|ZRANGE k 0 0",
    "waiting:none": "ZADD k 1 m|ZREM k m|ZSCORE k m|ZCARD k|ZRANGE k 0 0|ZRANGEBYSCORE k 0 0",
    "turn": "SET k v|GET k|PEXPIRE k 1",
}
_OF_A_LIST = (
    "LPUSH k v|RPUSH k v|RPOP k|LLEN k|LRANGE k 0 0|LINDEX k 0|LPOS k v|LREM k 1 v|EXISTS k"
)
_OF_NO_KEY = "TIME|SCRIPT LOAD x|SCRIPT EXISTS x|EVALSHA x 0|PING"

_KOMBUS = (
    "BRPOP DEL EVAL EXEC HGETALL LLEN MULTI DISCARD PSUBSCRIBE PUBLISH PUNSUBSCRIBE SADD SELECT "
    "SISMEMBER SMEMBERS SREM SUBSCRIBE UNSUBSCRIBE UNWATCH WATCH ZREVRANGEBYSCORE"
)
#: ``CLIENT TRACKING`` is how the own transport hears of new messages.
_CONNECTION = "CLIENT|ID CLIENT|TRACKING HELLO"
#: For the doctor. Where INFO is refused the server's uptime is unknown, and what dead
#: workers hold is requeued a little later.
_WISHED = "INFO SCAN"

#: The keys besides the queues' own, behind the ``global_keyprefix``.
KEY_PATTERNS = (f"{KEYS}*", "_kombu.binding*", "unacked*", "*.pidbox*", "celeryev.*")
#: Remote control and events. Redis compares what is subscribed to by a pattern letter by letter.
CHANNELS = ("/{db}.celery.pidbox", "/{db}.celeryev/*", "/{db}.celeryev/worker.*")


def _commands() -> tuple[str, ...]:
    tried = "|".join((*_OURS.values(), _OF_A_LIST, _OF_NO_KEY)).split("|")
    words = (command.split() for command in tried)
    names = {"|".join(w[:2]) if w[0] == "SCRIPT" else w[0] for w in words}
    return tuple(sorted({*names, *_KOMBUS.split(), *_CONNECTION.split(), *_WISHED.split()}))


#: Every command, a subcommand behind a ``|``.
COMMANDS = _commands()


def acl(queues: Iterable[str], database: int = 0) -> list[str]:
    """The rules of ``ACL SETUSER`` for an app that uses *queues*, dead-letter queues included."""
    return [
        *(f"~{pattern}" for pattern in KEY_PATTERNS),
        # A queue has a list for each priority step, whose name begins with the queue's.
        *(f"~{queue}*" for queue in queues),
        *(f"&{channel.format(db=database)}" for channel in CHANNELS),
        *(f"+{command.lower()}" for command in COMMANDS),
    ]


def missing(client: Any, prefix: str, queues: Iterable[str]) -> dict[str, list[str]]:
    """The commands that *client* is refused, by the key ("" for those without one); nothing is
    changed. *queues* are the lists that are asked about.

    Raises ResponseError where it may not even begin a transaction. *client* keeps its connection.
    """
    wanted = [(f"{prefix}{KEYS}{key}", commands) for key, commands in _OURS.items()]
    wanted += [(f"{prefix}{queue}", _OF_A_LIST) for queue in queues]
    return lacking(client, [*wanted, ("", _OF_NO_KEY)])


def lacking(client: Any, wanted: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """As :func:`missing`, of the *wanted* alone: each a key, and commands divided by ``|`` whose
    ``k`` stands for it. A command that the server does not have is refused as well."""
    from redis.exceptions import ResponseError

    asked = [
        (key, [key if word == "k" else word for word in command.split()])
        for key, commands in wanted
        for command in commands.split("|")
    ]
    client.ping()
    connection = client.connection
    every = [["MULTI"], *(words for _, words in asked), ["DISCARD"]]
    connection.send_packed_command(connection.pack_commands(every))
    answers = []
    for _ in every:
        try:
            connection.read_response()
            answers.append("")
        except ResponseError as exc:
            answers.append(str(exc))
    if answers[0]:
        raise ResponseError(answers[0])
    found: dict[str, list[str]] = {}
    for (key, words), answer in zip(asked, answers[1:-1], strict=True):
        if "permission" in answer.lower() or "unknown command" in answer.lower():
            found.setdefault(key, []).append(words[0])
    return found


def refused(client: Any, prefix: str, queues: Iterable[str]) -> str:
    """What :func:`missing` finds, for a person: ``HSET on celery_resilience:held:none; ...``."""
    return told(missing(client, prefix, queues))


def told(found: Mapping[str, list[str]]) -> str:
    """What :func:`missing` or :func:`lacking` has *found*, for a person."""
    return "; ".join(
        f"{', '.join(commands)}{f' on {key}' if key else ''}" for key, commands in found.items()
    )

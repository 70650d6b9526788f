"""Redis: reading a list from its oldest message on, while others take out of it and put into it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["read_page"]

_PAGE = 100


def read_page(
    client: Redis, key: str, offset: int, seen: Collection[int]
) -> tuple[int, list[bytes], bool]:
    """What follows in the list *key* behind the *offset* oldest, whose hashes have been *seen*; up
    to where that is, and whether more may follow.

    Others may have removed some of these: then what follows has come nearer, and is found behind
    the newest page that begins with one that was seen. What is pushed meanwhile lies at the end.
    """
    if not offset:
        page = _page(client, key, 0, _PAGE)
        return len(page), page, len(page) == _PAGE
    at, size = offset - 1, _PAGE + 1
    page = _page(client, key, at, size)
    if page and hash(page[0]) in seen:
        return at + len(page), page[1:], len(page) == size
    while at and not (page and hash(page[0]) in seen):
        at = max(0, at - _PAGE)
        page = _page(client, key, at, size)
    fresh = [payload for payload in page if hash(payload) not in seen]
    return at + len(page), fresh, len(page) == size


def _page(client: Redis, key: str, at: int, size: int) -> list[bytes]:
    """*size* messages behind the *at* oldest; the right end of the list is the oldest."""
    page: Any = client.lrange(key, -at - size, -at - 1)
    return list(reversed(page))

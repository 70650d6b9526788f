"""The list of rights on Redis holds whatever our scripts do."""

from __future__ import annotations

import re
from pathlib import Path

import celery_resilience
from celery_resilience.brokers.redis.rights import COMMANDS, acl

SCRIPTS = sorted(Path(celery_resilience.__file__).parent.rglob("*.lua"))


def test_every_command_of_a_script_is_in_the_list() -> None:
    used = {
        command
        for script in SCRIPTS
        for command in re.findall(r'\b(?:p?call|may)\("([A-Z]+)"', script.read_text())
    }
    assert {"LPUSH", "ZADD", "HSET", "TIME"} <= used
    assert sorted(used - set(COMMANDS)) == []


def test_rules_name_keys_channels_and_commands() -> None:
    rules = acl(["shop", "dead_letter"], database=3)
    assert {"~celery_resilience:*", "~shop*", "~dead_letter*", "&/3.celery.pidbox"} <= set(rules)
    assert {"+lpush", "+client|tracking"} <= set(rules)

"""``python -m examples.django_shop``: orders that are charged by a bank on a bad day."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

from examples import stage
from examples.django_shop.services import Bank
from examples.stage import Command, say, wait

PROJECT = Path(__file__).parent


def main() -> None:
    url = stage.broker_url("Charge the orders of a Django shop while the bank misbehaves.")
    with (
        stage.broker(url) as environment,
        Bank() as bank,
        tempfile.TemporaryDirectory(prefix="shop-") as folder,
    ):
        assert isinstance(bank, Bank)
        database = Path(folder, "db.sqlite3")
        path = os.pathsep.join(filter(None, [str(stage.ROOT), os.environ.get("PYTHONPATH")]))
        os.environ.update(environment, BANK_URL=bank.url, DATABASE=str(database), PYTHONPATH=path)
        os.environ.pop("DJANGO_SETTINGS_MODULE", None)
        run("manage.py", "migrate", "--verbosity", "0")
        arguments = ["-A", "shop", "worker", "-n", "shop@%h", "-l", "INFO", "--concurrency", "2"]
        arguments += ["--without-gossip", "--without-mingle"]
        with Command(*arguments, cwd=PROJECT) as worker:
            charge_orders(bank, database, worker)


def charge_orders(bank: Bank, database: Path, worker: Command) -> None:
    run("manage.py", "place_orders")
    wait("alice has paid", lambda: orders(database).get("alice"), worker)
    letters = ["-m", "celery", "-A", "shop", "dlq"]
    bobs = wait_for_letter(worker)
    run(*letters, "ls")

    say("", "Somebody talks to the bank, and replays the letter.")
    bank.mend()
    run(*letters, "replay", bobs, "--yes")
    wait("bob has paid", lambda: orders(database).get("bob"), worker)
    run(*letters, "ls")

    say("")
    for customer, paid in orders(database).items():
        say(f"{customer}: {'paid' if paid else 'not paid'}, says the database")
    for customer, amount in bank.paid.items():
        say(f"{customer}: {amount}, says the bank")
    say(f"{stage.clock()}  done")


def wait_for_letter(worker: Command) -> str:
    """The id of the dead letter, as the worker's log tells it."""
    found: list[str] = []

    def logged() -> bool:
        found[:] = [line for line in list(worker.lines) if "]: dead letter " in line]
        return bool(found)

    wait("bob's charge is a dead letter", logged, worker)
    return found[0].partition("dead letter ")[2].split()[0]


def run(*arguments: str) -> None:
    """Run a command of the project's, and show it with what it prints."""
    shown = arguments[1:] if arguments[0] == "-m" else ("python", *arguments)
    say(f"$ {' '.join(shown)}")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=stage.PATIENCE,
        check=False,
    )
    say(*done.stdout.splitlines())
    if done.returncode:
        raise SystemExit(f"{' '.join(shown)} ended with {done.returncode}")


def orders(database: Path) -> dict[str, bool]:
    """Who has ordered, and whether it is paid."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT customer, paid FROM orders_order ORDER BY id")
        return {customer: bool(paid) for customer, paid in rows}


if __name__ == "__main__":
    main()

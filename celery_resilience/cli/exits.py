"""Exit codes of the commands, and the message for each kind of failure."""

# Every call of ``celery`` imports this module: heavy imports are inside the functions.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from celery.exceptions import CeleryCommandException
from celery.platforms import EX_FAILURE, EX_UNAVAILABLE

from celery_resilience.cli.stderr import warnings_shown

__all__ = ["EXIT_CODES", "EX_NOT_KNOWN", "app_of", "ending", "needs_app"]

EXIT_CODES = """\b
Exit codes:
  0   done
  1   failed, nothing found, or not confirmed
  2   wrong usage
  3   not known: the broker does not answer, or some letters cannot be seen just now
  69  broker unreachable"""
#: Neither "there are letters" nor "there are none".
EX_NOT_KNOWN = 3


@contextmanager
def ending() -> Iterator[None]:
    """End a command with the exit code for what went wrong."""
    from celery.exceptions import ImproperlyConfigured

    from celery_resilience.brokers.connect import NoAnswer, Unreachable
    from celery_resilience.errors import ResilienceError
    from celery_resilience.messages.redact import printable

    try:
        with warnings_shown():
            yield
    except NoAnswer as exc:
        raise CeleryCommandException(printable(str(exc)), EX_NOT_KNOWN) from exc
    except Unreachable as exc:
        raise CeleryCommandException(printable(str(exc)), EX_UNAVAILABLE) from exc
    except (ResilienceError, ImproperlyConfigured) as exc:
        raise CeleryCommandException(printable(str(exc)), EX_FAILURE) from exc


def needs_app(ctx: click.Context) -> None:
    """Refuse to go on where neither an app nor a broker was named: Celery would ask for RabbitMQ
    on this machine."""
    given = ctx.find_root().params
    conf = ctx.obj.app.conf
    if given.get("app", "") is None and not (
        given.get("broker") or conf.broker_read_url or conf.broker_url
    ):
        verb, here = "", ctx
        while here.parent is not None:
            verb, here = f"{here.info_name} {verb}".strip(), here.parent
        raise click.UsageError(f"no app was given: celery -A YOUR_APP {verb}")


def app_of(ctx: click.Context) -> str:
    """How ``celery`` was called, as far as the app goes."""
    app = ctx.find_root().params.get("app")
    return f"celery -A {app}" if isinstance(app, str) else "celery"

"""What is said to those who type a flag of ours for a worker whose app does not use us.

Only ``install(app)`` teaches Celery's worker our flags; without it they are unknown options, and
nothing would say why.
"""

from __future__ import annotations

from typing import Any

import click

__all__ = ["tell_of_install"]


def tell_of_install(worker: Any) -> None:
    """Let Celery's command *worker* say what to do about flags of ours that it does not know."""
    parse = worker.parse_args

    def parse_args(ctx: click.Context, args: list[str]) -> Any:
        try:
            return parse(ctx, args)
        except click.NoSuchOption as exc:
            from celery_resilience.worker.flags import names

            if exc.option_name not in names():
                raise
            raise click.UsageError(
                f"{exc.option_name} is a flag of celery_resilience, and this app does not use it: "
                "call install(app), from celery_resilience, right after app = Celery(...).",
                ctx,
            ) from exc

    worker.parse_args = parse_args

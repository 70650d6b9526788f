"""``celery-resilience``: what needs no app of yours."""

from __future__ import annotations

from importlib import import_module

import click

from celery_resilience import __version__

__all__ = ["main"]


class _Lazy(click.Group):
    """Imports a command when it is asked for."""

    _commands = {"demo": "celery_resilience.demo:demo"}  # noqa: RUF012

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._commands.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Lazy)
@click.version_option(__version__, prog_name="celery-resilience")
def main() -> None:
    """Celery tasks that are never lost."""

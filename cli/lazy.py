"""A group of commands that imports one only when it is run, so that `vfz --help` costs little more than click."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click

from vfz.pipeline.errors import UsageError, nearest_names

Commands = Mapping[str, tuple[str, str, str]]
"""name -> (module, command in it, help in the list of commands), in the order a user needs them."""


class LazyGroup(click.Group):
    """A group whose commands are known by name until they are run."""

    def __init__(self, name: str | None = None, *, commands: Commands, **settings: object) -> None:
        super().__init__(name, **settings)  # type: ignore[arg-type]
        self._lazy = commands

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order a user needs them."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command, or None where there is none of that name."""
        if cmd_name not in self._lazy:
            return None
        module, attribute, _ = self._lazy[cmd_name]
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command gets the nearest names."""
        if args and args[0] not in self._lazy and not args[0].startswith("-"):
            near = nearest_names(args[0], self._lazy) or list(self._lazy)
            prefix = "vfz" if self.name in {None, "cli"} else f"vfz {self.name}"
            raise UsageError(f"no command {args[0]!r}; did you mean {' or '.join(near)}? See {prefix} --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in self._lazy.items()])

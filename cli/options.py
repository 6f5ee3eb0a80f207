"""What every command shares: options out of a dataclass, groups that import a command when it is run, printable text.

`command` makes click options of an `Options` dataclass and adds `--config`, `--json` and `-v`. A flag that is not given
is None here, so that the order is always: command line, then config file, then the default in the dataclass. The checks
live in the dataclass.

`LazyGroup` knows its commands by name only, so that `vfz --help` costs little more than click.

`printable` is for text from outside (ids, reasons, paths, messages). File names on Linux hold any byte but `/`: a
newline would break a table, an escape sequence colour or clear the screen, a byte that is no UTF-8 fail to be written.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from vfz.pipeline.config import OptionField, Options
from vfz.pipeline.errors import UsageError, nearest_names
from vfz.pipeline.files import text_of_name

VERBOSE_HELP = "-v: show every option's value. -vv: also tracebacks of errors."
OptionsType = TypeVar("OptionsType", bound=Options)

Commands = Mapping[str, tuple[str, str, str]]
"""name -> (module, command in it, help in the list of commands), in the order a user needs them."""

_METAVARS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}


@dataclass
class Session:
    """What holds for the whole invocation; kept by `main` so that it is there when an error is shown."""

    verbosity: int = 0
    json: bool = False


def command(
    options_type: type[OptionsType],
    *,
    name: str,
    example: str,
    argument: str | None = None,
    commands: Commands | None = None,
) -> Callable[[Callable[[OptionsType, Session], None]], click.Command]:
    """Decorator: a function of (options, session) becomes a click command with every option of the dataclass.

    Args:
        options_type: the command's options.
        name: as typed; a command of a group by both names with a dot between, e.g. `cache.verify`.
        example: shown at the end of `--help`, one command a line.
        argument: name of the option that is given without its flag; one that takes several takes all that follow.
        commands: commands of its own, as in `vfz probe compare`; without one of them it is run itself.
    """

    def decorate(function: Callable[[OptionsType, Session], None]) -> click.Command:
        @functools.wraps(function)
        def callback(*, config: Path | None, as_json: bool, verbose: int, **flags: Any) -> None:
            context = click.get_current_context()
            if context.invoked_subcommand is not None:
                return
            session = context.ensure_object(Session)
            session.verbosity = max(session.verbosity, verbose)
            session.json = as_json
            flags = {name: value or None if isinstance(value, tuple) else value for name, value in flags.items()}
            flags |= _texts(options_type, flags)
            if config is None:
                _check_argument(options_type, argument, flags)
                options = options_type.from_mapping(flags, where="the command line")
            else:
                options = options_type.from_toml(config, command=name, overrides=flags)
            if session.verbosity:
                for field in options_type.option_fields():
                    click.echo(printable(f"{field.flag} {getattr(options, field.name)}"), err=True)
            function(options, session)

        shown = "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.splitlines())
        parameters = [
            _click_argument(field) if field.name == argument else _click_option(field)
            for field in options_type.option_fields()
        ]
        settings: dict[str, Any] = {
            "callback": callback,
            "params": [*parameters, *_common()],
            "help": function.__doc__,
            "epilog": shown,
        }
        own_name = name.rpartition(".")[2]
        if commands is not None:
            return LazyGroup(own_name, commands=commands, invoke_without_command=True, **settings)
        required = any(field.required for field in options_type.option_fields())
        return click.Command(own_name, no_args_is_help=required, **settings)

    return decorate


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


def printable(text: str) -> str:
    r"""The text with everything that is not printable as a backslash escape, as Python's `repr` writes it.

    Newlines and tabs, too: a line stays a line. What is printable, backslashes included, stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _texts(options_type: type[Options], flags: Mapping[str, Any]) -> dict[str, Any]:
    """What was given for options that are text and no paths, as UTF-8: the system hands over bytes."""
    texts = {field.name: flags.get(field.name) for field in options_type.option_fields() if field.kind is str}
    return {
        name: tuple(map(text_of_name, value)) if isinstance(value, tuple) else text_of_name(value)
        for name, value in texts.items()
        if value is not None
    }


def _check_argument(options_type: type[Options], argument: str | None, flags: dict[str, Any]) -> None:
    """Says what a command's argument is where it was left out: it has no flag that a message could name."""
    for field in options_type.option_fields():
        if field.name == argument and field.required and flags[argument] is None:
            raise UsageError(f"{argument.upper()} is missing: {field.info.help}")


def _click_argument(field: OptionField) -> click.Parameter:
    if field.many:
        return click.Argument([field.name], nargs=-1, required=False, type=str, metavar=f"[{field.name.upper()}]...")
    return click.Argument([field.name], required=False, type=str, metavar=f"[{field.name.upper()}]")


def _click_option(field: OptionField) -> click.Parameter:
    default = None if field.required or field.default is None or field.default is False else field.default
    text = field.info.help
    if field.required:
        text = f"{text} [required]"
    elif default is not None:
        text = f"{text} [default: {_shown(default)}]"
    if field.kind is bool:
        return click.Option([f"{field.flag}/--no-{field.flag[2:]}"], default=None, help=text)
    metavar = "|".join(field.info.choices) if field.info.choices else _METAVARS[field.kind]
    # click hands the text on as it is; the dataclass parses and checks it, as it does for TOML and Python. Several
    # values stand in one text with commas, or the flag is given several times, or both.
    shown = f"{metavar},…" if field.many else metavar
    names = [field.flag, field.name]
    return click.Option(names, default=None, type=str, metavar=shown, help=text, multiple=field.many)


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _common() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"], type=click.Path(path_type=Path), metavar="TOML",
            help="Read options from a TOML file; its keys are the flags' names, and flags win.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON on stdout, and only that."),
        click.Option(["-v", "--verbose"], count=True, help=VERBOSE_HELP),
    ]  # fmt: skip

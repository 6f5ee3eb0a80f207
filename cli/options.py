"""From an `Options` dataclass to click options and back: flags, `--config`, `--json` and `-v` for every command.

A flag that is not given is None here, so that the order is always: command line, then config file, then the default in
the dataclass. The checks live in the dataclass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from vfz.cli.lazy import Commands, LazyGroup
from vfz.cli.text import printable
from vfz.pipeline.config import OptionField, Options
from vfz.pipeline.errors import UsageError

VERBOSE_HELP = "-v: show every option's value. -vv: also tracebacks of errors."
OptionsType = TypeVar("OptionsType", bound=Options)


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
    return click.Option([field.flag], default=None, type=str, metavar=shown, help=text, multiple=field.many)


_METAVARS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}


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

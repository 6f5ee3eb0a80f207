"""`vfz`: the group of commands, the version, and the one place where an error becomes a line and an exit code.

Commands are imported when they are run, and what they need (torch, timm, zarr) when they call it: `vfz --help` costs
little more than importing click.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

import click

from vfz.cli.options import VERBOSE_HELP, Session
from vfz.pipeline.errors import UsageError, VfzError, nearest_names

# name -> (module, command in it, help in the list of commands)
COMMANDS = {
    "extract": ("vfz.cli.extract", "extract_command", "Run a frozen encoder over videos and cache the tokens."),
    "train-temporal": (
        "vfz.cli.train_temporal",
        "train_temporal_command",
        "Train a recurrent temporal module from a cache.",
    ),
    "probe": ("vfz.cli.probe", "probe_command", "Fit a linear or attentive probe on cached tokens."),
    "demo": ("vfz.cli.demo", "demo_command", "All three on built-in videos; prints a table."),
}


class LazyGroup(click.Group):
    """A group that imports a command only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order a user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command gets the nearest names."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest_names(args[0], COMMANDS) or list(COMMANDS)
            raise UsageError(f"no command {args[0]!r}; did you mean {' or '.join(near)}? See vfz --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExample:\n  vfz extract --dataset synthetic --encoder demo --layers 3\n"
    "  vfz train-temporal --core gmmix\n  vfz probe --probe linear",
)
@click.option("-v", "--verbose", count=True, help=VERBOSE_HELP)
@click.version_option(version("vfz"), prog_name="vfz")
@click.pass_obj
def cli(session: Session, verbose: int) -> None:
    """Freeze an image encoder, cache its video tokens once, train everything temporal from the cache."""
    session.verbosity = verbose


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 failed, 2 the request was wrong, 3 too many videos failed, 130 interrupted.
    """
    session = Session()
    try:
        outcome = cli.main(args=list(arguments) if arguments is not None else None, standalone_mode=False, obj=session)
    except VfzError as error:
        return _fail(session, str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error), err=True)
        return 2
    except click.ClickException as error:
        return _fail(session, error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _fail(session, "interrupted; what was finished is kept, and the same command goes on from there", 130)
    except Exception as error:  # noqa: BLE001 - the outermost edge: one line for people, -vv for the traceback
        line = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
        return _fail(session, f"{line}; this is a bug in vfz: run again with -vv and report it", 1)
    return outcome if isinstance(outcome, int) else 0


def _fail(session: Session, line: str, exit_code: int) -> int:
    if session.verbosity >= 2:
        traceback.print_exc(file=sys.stderr)
    click.echo(f"vfz: error: {line}", err=True)
    return exit_code


def run() -> None:
    """The `vfz` script."""
    sys.exit(main())

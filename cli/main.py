"""`vfz`: the group of commands, the version, and the one place where an error becomes a line and an exit code.

Commands are imported when they are run, and what they need (torch, timm, zarr) when they call it: `vfz --help` costs
little more than importing click.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

import click

from vfz.cli.options import VERBOSE_HELP, Commands, LazyGroup, Session, printable
from vfz.pipeline.errors import VfzError

COMMANDS: Commands = {
    "extract": ("vfz.cli.extract", "extract_command", "Run a frozen encoder over videos and cache the tokens."),
    "train-temporal": ("vfz.cli.train", "train_temporal_command", "Train a recurrent temporal module from a cache."),
    "evaluate": ("vfz.cli.train", "evaluate_command", "Evaluate a trained temporal module on a split of a cache."),
    "probe": ("vfz.cli.probe", "probe_command", "Fit a linear, attentive or kNN probe on cached tokens."),
    "cache": ("vfz.cli.cache", "cache_group", "List, describe, verify, convert and repair caches."),
    "run": ("vfz.cli.workflow", "run_command", "All stages of a workflow, those that are done left out."),
    "demo": ("vfz.cli.workflow", "demo_command", "All three on built-in videos; prints a table."),
}

INTERRUPTED = 130
"""The exit code of what a signal has stopped."""


@click.group(
    cls=LazyGroup,
    commands=COMMANDS,
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
        return _fail(
            session, "interrupted; what was finished is kept, and the same command goes on from there", INTERRUPTED
        )
    except Exception as error:  # noqa: BLE001 - the outermost edge: one line for people, -vv for the traceback
        line = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
        return _fail(session, f"{line}; this is a bug in vfz: run again with -vv and report it", 1)
    return outcome if isinstance(outcome, int) else 0


def _fail(session: Session, line: str, exit_code: int) -> int:
    if session.verbosity >= 2:
        for traced in traceback.format_exc().rstrip("\n").split("\n"):
            click.echo(printable(traced), err=True)
    click.echo(printable(f"vfz: error: {line}"), err=True)
    return exit_code


def run() -> None:
    """The `vfz` script."""
    code = main()
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said; once more would only break off Python's own end
    sys.exit(code)

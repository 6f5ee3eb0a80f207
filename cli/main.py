"""`vfz`: the group of commands, the version, and the one place where an error becomes a line and an exit code.

Commands are imported when they are run, and what they need (torch, timm, zarr) when they call it: `vfz --help` costs
little more than importing click.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from types import FrameType
from typing import Any, TextIO

import click

from vfz.cli.options import VERBOSE_HELP, Commands, LazyGroup, Session, printable
from vfz.pipeline.errors import HangUp, VfzError
from vfz.pipeline.progress import is_importing

COMMANDS: Commands = {
    "extract": ("vfz.cli.extract", "extract_command", "Run a frozen encoder over videos and cache the tokens."),
    "train-temporal": ("vfz.cli.train", "train_temporal_command", "Train a recurrent temporal module from a cache."),
    "evaluate": ("vfz.cli.train", "evaluate_command", "Evaluate a trained temporal module on a split of a cache."),
    "predict": ("vfz.cli.predict", "predict_command", "Ask a trained module, or a probe, about videos."),
    "probe": ("vfz.cli.probe", "probe_command", "Fit a linear, attentive or kNN probe on cached tokens."),
    "compare": (
        "vfz.cli.compare",
        "compare_command",
        "Put runs and probes side by side: tables, tests, a page.",
    ),
    "cache": ("vfz.cli.cache", "cache_group", "List, describe, verify, convert and repair caches."),
    "run": ("vfz.cli.workflow", "run_command", "All stages of a workflow, those that are done left out."),
    "demo": ("vfz.cli.workflow", "demo_command", "All three on built-in videos; prints a table."),
}

INTERRUPTED = 130
"""The exit code of what a signal has stopped."""

_INTERRUPTED_LINE = "interrupted; what was finished is kept, and the same command goes on from there"


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

    0 done, 1 failed, 2 the request was wrong, 3 too many videos failed, 129 terminal closed, 130 interrupted.
    """
    session = Session()
    with _own_streams():
        try:
            code = _call(session, arguments)
            sys.stdout.flush()
        except _OutputError as error:
            code = _end_without_output(session, error)
    return code


def _call(session: Session, arguments: Sequence[str] | None) -> int:
    try:
        outcome = cli.main(args=list(arguments) if arguments is not None else None, standalone_mode=False, obj=session)
    except VfzError as error:
        return _fail(session, str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error), err=True)
        return 2
    except click.ClickException as error:
        return _fail(session, error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort) as error:  # click makes the second of the first
        code = HangUp.exit_code if HangUp in map(type, (error, error.__cause__)) else INTERRUPTED
        return _fail(session, _INTERRUPTED_LINE, code)
    except _OutputError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost edge: one line for people, -vv for the traceback
        line = f"unexpected {type(error).__name__}: {error}".splitlines()[0]
        return _fail(session, f"{line}; this is a bug in vfz: run again with -vv and report it", 1)
    return outcome if isinstance(outcome, int) else 0


def _fail(session: Session, line: str, exit_code: int) -> int:
    lines = traceback.format_exc().rstrip("\n").split("\n") if session.verbosity >= 2 else []
    with contextlib.suppress(_OutputError):  # where nobody can be told, the exit code says it
        for shown in [*lines, f"vfz: error: {line}"]:
            click.echo(printable(shown), err=True)
    return exit_code


class _OutputError(Exception):
    """Output cannot be written. No `OSError`, so that nobody takes it for that of a file."""


class _Stream:
    """stdout or stderr, whose errors are told from those of files.

    Args:
        stream: which.
        may_be_gone: where it was a terminal that is closed, nobody is to be told: what is written goes nowhere.
    """

    def __init__(self, stream: TextIO, *, may_be_gone: bool) -> None:
        self._stream, self._may_be_gone = stream, may_be_gone

    def write(self, text: str) -> int:
        with _output_errors(may_be_gone=self._may_be_gone):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _output_errors(may_be_gone=self._may_be_gone):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _output_errors(*, may_be_gone: bool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not (may_be_gone and error.errno == errno.EIO):
            raise _OutputError(error) from error


@contextlib.contextmanager
def _own_streams() -> Iterator[None]:
    """What is written in the block raises `_OutputError`; what cannot be written then is not tried again at the end.

    Output that was closed (`>&-`) goes nowhere, and letters that the locale does not have become escapes.
    """
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if stream is None:
            before[name] = stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - to the very end
        elif isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, _Stream(stream, may_be_gone=name == "stderr" and stream.isatty()))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)
            try:
                stream.flush()
            except OSError:
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end_without_output(session: Session, error: _OutputError) -> int:
    """The exit code where output cannot be written; who closed a pipe (`| head`) has seen enough: nothing is said."""
    reason: OSError = error.args[0]
    if reason.errno == errno.EPIPE:
        return 1
    why = (reason.strerror or str(reason)).lower()
    return _fail(session, f"cannot write the output: {why}; what was finished is kept: send the output elsewhere", 1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises what Ctrl-C does, so that nothing is left behind. A terminal may say more than once that it is closed.

    In the middle of an import it ends the process: modules written in C may swallow an exception there, or abort.
    """
    if is_importing(frame):
        with contextlib.suppress(OSError):
            os.write(2, f"vfz: error: {_INTERRUPTED_LINE}\n".encode())
        os._exit(HangUp.exit_code if number == signal.SIGHUP else INTERRUPTED)
    if number == signal.SIGHUP:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise HangUp
    raise KeyboardInterrupt


def run() -> None:
    """The `vfz` script."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, _interrupt)
        code = main()
    except KeyboardInterrupt as error:  # before anything was begun, or when all was said
        code = error.exit_code if isinstance(error, HangUp) else INTERRUPTED
    if code in {INTERRUPTED, HangUp.exit_code}:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said; once more would only break off Python's own end
    sys.exit(code)

"""Every error vfz raises on purpose.

    VfzError                        exit code 1
    ├── UsageError                  exit code 2: the command line, config file or arguments are wrong
    │   └── UnknownNameError        a name that is in no registry; offers the nearest ones
    ├── DatasetError                a dataset cannot be listed (no folder, no videos, files that contradict each other)
    │   └── MissingRootError        exit code 2: the root that was given is not there
    ├── DecodeError                 one video cannot be decoded in full; extraction records it and goes on
    ├── EncoderError                weights cannot be loaded, or the model gives no usable tokens
    ├── CacheError
    │   ├── CacheFormatError        not a cache, of another format version, or damaged
    │   ├── CacheIncompleteError    some planned videos have no committed shard yet
    │   └── CacheMismatchError      another recipe, another file under the same id
    ├── StorageError                the disk is full or refuses to be written
    ├── EngineError                 worker processes or their scheduler are lost or cannot be reached
    ├── RunError                    a training or probe run cannot start, resume or go on
    │   └── RunInterruptedError     exit code 130: a signal asked it to stop; it can be resumed
    ├── CheckpointError             weights of a temporal model cannot be read, or are not those of the model asked for
    └── TooManyFailuresError        exit code 3: more videos failed than --max-failures allows

`HangUp`, exit code 129, is no error: it is Ctrl-C by a terminal that was closed.

A message is one line: what was wrong (with the value), what is allowed, what to do next. The command line catches
`VfzError` once, in `vfz.cli.main`, prints that line and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class VfzError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(VfzError):
    """The request itself is wrong; nothing was started."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among the allowed ones; the message offers the nearest."""

    def __init__(self, kind: str, name: str, allowed: Iterable[str], *, hint: str = "") -> None:
        self.nearest = nearest_names(name, names := sorted(allowed))
        known = f"did you mean {' or '.join(self.nearest)}?" if self.nearest else f"known: {', '.join(names[:12])}"
        super().__init__(f"unknown {kind} {name!r}; {known}{' ' + hint if hint else ''}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its message; other errors are made from theirs anyway."""
        return UsageError, self.args


class DatasetError(VfzError):
    """A dataset cannot be listed."""


class MissingRootError(DatasetError):
    """The root that was given is not there, or is not a folder."""

    exit_code = UsageError.exit_code


class DecodeError(VfzError):
    """One video cannot be decoded in full."""


class EncoderError(VfzError):
    """The encoder cannot be built, or gives no usable tokens."""


class CacheError(VfzError):
    """Something is wrong with a cache."""


class CacheFormatError(CacheError):
    """Not a cache, of an unknown format version, or damaged."""


class CacheIncompleteError(CacheError):
    """Some planned videos are in no committed shard yet."""


class CacheMismatchError(CacheError):
    """The cache belongs to another recipe, or a video id to another file."""


class StorageError(VfzError):
    """The disk is full, or refuses to be written."""


class EngineError(VfzError):
    """The processes or machines that were to do the work are lost, or cannot be reached."""


class RunError(VfzError):
    """A training or probe run cannot start, resume or go on."""


class CheckpointError(VfzError):
    """Weights of a temporal model cannot be read, or are not those of the model asked for."""


class RunInterruptedError(RunError):
    """A signal asked the run to stop; it left a checkpoint and can be resumed."""

    exit_code = 130


class TooManyFailuresError(VfzError):
    """More videos failed than allowed; what was finished is kept.

    Attributes:
        report: the `ExtractReport` of what was done until then; None where the extraction had not begun.
    """

    exit_code = 3
    report: object = None  # whoever raises it imports this file, not the other way round


class HangUp(KeyboardInterrupt):
    """The terminal was closed (SIGHUP). Like Ctrl-C, but that nobody is left to be told."""

    exit_code = 129


def nearest_names(name: str, allowed: Iterable[str], *, count: int = 3) -> list[str]:
    """Up to `count` allowed names that begin with `name` or look like it, best first."""
    known = list(allowed)
    longer = sorted((one for one in known if name and one.startswith(name)), key=lambda one: (len(one), one))
    alike = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return list(dict.fromkeys([*longer[:count], *alike]))[:count]

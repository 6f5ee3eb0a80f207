"""Options as data: one frozen dataclass per command is the only source of names, defaults, help and checks.

Python callers construct the dataclass, a TOML file is read into it, and `vfz.cli.options` derives the click options
from it. A field is made with `option(...)`; its annotation gives the type. Standard library only, so that
`vfz --help` stays quick.

    @dataclass(frozen=True, kw_only=True)
    class GreetOptions(Options):
        times: int = option(1, help="How often.", minimum=1)

    GreetOptions.from_toml("greet.toml", command="greet")  # UsageError for a misspelt key, with the nearest valid one
"""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.files import is_address, name_of_text

_INFO = "vfz_option"
REQUIRED: Any = dataclasses.MISSING


def option(
    default: Any = REQUIRED,
    *,
    help: str,  # noqa: A002 - the word click and argparse use for it
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    added_later: bool = False,
) -> Any:
    """A dataclass field that is also a command-line flag and a TOML key.

    Args:
        default: the default; leave out for a required option.
        help: one sentence.
        choices: allowed values.
        minimum: least number.
        above: exclusive lower bound.
        maximum: largest number.
        added_later: whether there are runs or results from before it was there. Where it has its default they are as if
            it had been given: they are continued, and found again.
    """
    info = OptionInfo(
        help=help, choices=tuple(choices) if choices else None, minimum=minimum, above=above, maximum=maximum,
        added_later=added_later,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata={_INFO: info})


@dataclass(frozen=True, kw_only=True)
class OptionInfo:
    """What an option is besides its name, type and default."""

    help: str
    choices: tuple[str, ...] | None = None
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    added_later: bool = False


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every command's options: values are parsed and checked when an instance is made."""

    def __post_init__(self) -> None:
        for field in self.option_fields():
            object.__setattr__(self, field.name, field.parse(getattr(self, field.name)))

    @classmethod
    def option_fields(cls) -> list[OptionField]:
        """The options in the order they are declared."""
        hints = typing.get_type_hints(cls)
        resolved = []
        for field in dataclasses.fields(cls):
            kind, many = _kind_of(hints[field.name])
            info: OptionInfo = field.metadata[_INFO]
            resolved.append(OptionField(name=field.name, kind=kind, many=many, default=field.default, info=info))
        return resolved

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Options from names spelt as the flags (`num-videos` or `num_videos`).

        Raises:
            UsageError: for an unknown name (with the nearest valid one), a missing one or a bad value.
        """
        given = cls._by_field(values, where)
        missing = [field for field in cls.option_fields() if field.required and field.name not in given]
        if missing:
            flags = " and ".join(field.flag for field in missing)
            told = "; ".join(f"{field.flag}: {field.info.help.rstrip('.')}" for field in missing)
            raise UsageError(f"{flags} must be given, on the command line or in a --config file. {told}")
        return cls(**given)

    @classmethod
    def check_some(cls, values: Mapping[str, Any], *, where: str) -> None:
        """Check some of the options, each on its own: there may be required ones missing.

        Raises:
            UsageError: for an unknown name (with the nearest valid one) or a bad value.
        """
        given = cls._by_field(values, where)
        for field in cls.option_fields():
            field.parse(given.get(field.name))

    @classmethod
    def _by_field(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        known = {field.name: field for field in cls.option_fields()}
        given = {}
        for key, value in values.items():
            name = key.replace("-", "_")
            name = name if name in known else f"{name}_"
            if name not in known:
                flags = [field.flag.removeprefix("--") for field in known.values()]
                raise UnknownNameError(f"key in {where}", key, flags)
            if value is not None:
                given[name] = value
        return given

    @classmethod
    def from_toml(cls, path: Path | str, *, command: str, overrides: Mapping[str, Any] | None = None) -> Self:
        """Options from a TOML file, `overrides` (flags) winning over it."""
        values = read_toml(Path(path), command=command)
        paths = {field.name for field in cls.option_fields() if field.kind is Path}
        merged = {key.replace("-", "_"): value for key, value in values.items()}
        merged = {name: _as_names(value) if name in paths else value for name, value in merged.items()}
        merged.update({key: value for key, value in (overrides or {}).items() if value is not None})
        return cls.from_mapping(merged, where=str(path))


@dataclass(frozen=True, kw_only=True)
class OptionField:
    """One option of an `Options` class, resolved: what click, TOML and the checks need to know of it."""

    name: str
    kind: type
    many: bool
    default: Any
    info: OptionInfo

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED

    @property
    def flag(self) -> str:
        """The name on the command line, e.g. `--num-videos`; `from_` is `--from`, a word of Python's own."""
        return "--" + self.name.rstrip("_").replace("_", "-")

    def parse(self, value: Any) -> Any:
        """A value from the command line, TOML or Python, as the field's type.

        Raises:
            UsageError: when it is of another type, not among the choices or out of bounds.
        """
        if value is None:
            return None
        if self.many:
            given = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            return tuple(self._parse_one(item) for some in given for item in self._apart(some))
        return self._parse_one(value)

    def _apart(self, value: Any) -> list[Any]:
        """Values that stand in one text with commas between; a file's name may have commas, and is told by the file."""
        if not isinstance(value, str) or (self.kind is Path and "," in value and os.path.lexists(value)):
            return [value]
        return [part.strip() for part in value.split(",")]

    def _parse_one(self, value: Any) -> Any:
        parsed = self._convert(value)
        info = self.info
        if info.choices and parsed not in info.choices:
            raise UsageError(f"{self.flag} {parsed!r} is not allowed; choose from {', '.join(info.choices)}")
        if isinstance(parsed, int | float) and not isinstance(parsed, bool):
            if not math.isfinite(parsed):
                raise UsageError(f"{self.flag} {parsed} is not a finite number")
            if info.minimum is not None and not parsed >= info.minimum:
                raise UsageError(f"{self.flag} {parsed} is too small; the least is {info.minimum:g}")
            if info.above is not None and not parsed > info.above:
                raise UsageError(f"{self.flag} {parsed} is too small; it must be above {info.above:g}")
            if info.maximum is not None and not parsed <= info.maximum:
                raise UsageError(f"{self.flag} {parsed} is too large; the most is {info.maximum:g}")
        return parsed

    def _convert(self, value: Any) -> Any:
        wrong = UsageError(f"{self.flag} {value!r} is not {_KIND_WORDS[self.kind]}")
        if self.kind is bool or isinstance(value, bool):
            if self.kind is not bool or not isinstance(value, bool):
                raise wrong
            return value
        if self.kind is str and isinstance(value, int):
            return str(value)  # `layers = [2, 5]` in TOML
        if self.kind in (str, Path) and not isinstance(value, str | Path):
            raise wrong
        if self.kind is int and isinstance(value, float) and not value.is_integer():
            raise wrong
        if self.kind is Path:
            return self._path(value)
        try:
            return self.kind(value)
        except (TypeError, ValueError):
            raise wrong from None

    def _path(self, value: str | Path) -> Path:
        if is_address(value):
            raise UsageError(
                f"{self.flag} {str(value)!r} is an address, and vfz reads and writes files of this machine only; "
                "give a path, such as that of a folder where the storage is mounted"
            )
        if not str(value) or "\0" in str(value):
            raise UsageError(f"{self.flag} {str(value)!r} cannot be a path; give one, `.` for the folder that is here")
        if not isinstance(value, str) or not value.startswith("~"):
            return Path(value)
        try:
            return Path(value).expanduser()  # a shell leaves --out=~/x and config files as they are
        except RuntimeError:
            raise UsageError(
                f"{self.flag} {value!r} begins with ~ and no user of that name; give the whole path, or ./{value}"
            ) from None


_KIND_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _as_names(value: Any) -> Any:
    """Paths in a file, which is UTF-8, as the file system's functions take them."""
    if isinstance(value, list):
        return [_as_names(item) for item in value]
    return name_of_text(value) if isinstance(value, str) else value


def _kind_of(hint: Any) -> tuple[type, bool]:
    """The element type of an annotation, and whether it is a tuple of them."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def read_toml(path: Path, *, command: str) -> dict[str, Any]:
    """The keys of a config file for one command.

    They stand in a table named as the command (`[extract]`, `[cache.verify]`), so that one file can serve several
    commands, or, in a file without tables, at the top. `[defaults.<command>]` is read too, the command's table wins.
    What a table says of a paper's figure is for `vfz run` and left out.

    Raises:
        UsageError: when the file is not there, is not TOML, mixes both, or has several tables for the command.
    """
    document = read_tables(path)
    if not any(_is_table(value) for value in document.values()):
        return document
    found: Any = document
    for name in command.split("."):
        found = found.get(name, {}) if isinstance(found, dict) else None
    if isinstance(found, list):
        raise UsageError(f"{path} has {len(found)} tables [[{command}]]; run them all with vfz run {path}")
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {command} is not one table; write [{command}]")
    table = _with_defaults(found, document, command)
    return {key: value for key, value in table.items() if (command, key) != ("train-temporal", "paper")}


def tables_of(document: Mapping[str, Any], command: str) -> list[dict[str, Any]]:
    """Every table `[command]` or `[[command]]` of a config file, with what `[defaults.command]` has and it has not."""
    found = document.get(command, [])
    tables = found if isinstance(found, list) else [found]
    return [_with_defaults(table, document, command) for table in tables]


def _with_defaults(table: Mapping[str, Any], document: Mapping[str, Any], command: str) -> dict[str, Any]:
    own = {key.replace("-", "_") for key in table}
    shared: Mapping[str, Any] = document.get("defaults", {}).get(command, {})
    return {key: value for key, value in shared.items() if key.replace("-", "_") not in own} | dict(table)


def read_tables(path: Path) -> dict[str, Any]:
    """A config file as it is, once its tables are known to be those of commands.

    Raises:
        UsageError: when the file is not there, is not TOML, mixes tables and other keys, or has defaults of a command
        that takes none.
    """
    if is_address(path):
        raise UsageError(f"the config file {str(path)!r} is an address; give the path of a file of this machine")
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text, as TOML is; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    tables = {key for key, value in document.items() if _is_table(value)}
    if tables and (stray := sorted(document.keys() - tables)):
        raise UsageError(
            f"{path} has keys outside its tables: {', '.join(stray)}; move them into {' or '.join(sorted(tables))}"
        )
    if unknown := sorted(tables - TABLES):
        raise UnknownNameError(f"table in {path}", unknown[0], TABLES)
    if "defaults" in tables:
        _check_defaults(document["defaults"], path)
    return document


def _check_defaults(defaults: Any, path: Path) -> None:
    if not isinstance(defaults, dict):
        raise UsageError(f"{path} has tables [[defaults]]; write one [defaults.train-temporal]")
    for command, values in defaults.items():
        if command not in REPEATED:
            raise UnknownNameError(f"table in [defaults] of {path}", command, REPEATED)
        if not isinstance(values, dict):
            raise UsageError(f"{path}: defaults.{command} is not one table; write [defaults.{command}]")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (
        bool(value) and isinstance(value, list) and all(isinstance(item, dict) for item in value)
    )


COMMANDS = frozenset({"extract", "train-temporal", "evaluate", "predict", "probe", "compare", "cache", "demo", "run"})
REPEATED = frozenset({"convert", "train-temporal", "evaluate", "probe", "compare", "predict"})
"""Commands of which a file may have several tables, and in `[defaults.<command>]` what they share."""
TABLES = COMMANDS | {"convert", "paper", "defaults"}
"""Names a table of a config file may have; `convert` is a workflow's stage, `paper` says what was published."""


def check_folder_name(name: str | None) -> None:
    """Refuse a `--name` that would not be one folder of its own.

    Raises:
        UsageError: unless it is None or made of letters, digits, `.`, `_` and `-`, not beginning with `.`.
    """
    if name is not None and (not name or name[0] == "." or not all(c.isalnum() or c in "._-" for c in name)):
        raise UsageError(f"--name {name!r} cannot name a folder; use letters, digits, '.', '_' and '-'")


def check_out_folder(path: Path) -> None:
    """Refuse an `--out` in which nothing can be made.

    Raises:
        UsageError: a part of the path is there and no folder.
    """
    there = next((part for part in (path, *path.parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise UsageError(f"--out {path} cannot be a folder: {there} is a file; choose another")


def check_out_file(path: Path, *, force: bool) -> None:
    """Refuse an `--out` that is there, unless it is a file that may be replaced.

    Raises:
        UsageError: what is there.
    """
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; choose a file")
    if path.exists() and not force:
        raise UsageError(f"--out {path} is there already; choose another file, or give --force to replace it")

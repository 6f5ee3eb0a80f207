"""Text from outside, cleaned once, where it is read: annotation files and their cells, names of files and folders.

Cleaning is the same everywhere: white space at the ends goes, and letters are composed (Unicode NFC), since `é` may be
written as one letter or as an `e` and an accent. Files are UTF-8 whatever the locale says. What is cleaned is text that
is compared and kept (ids, classes, splits, names of columns); paths stay as they are on the disk.

    read_lines      txt       read_csv      a header, then rows       read_json      read_text      any of them
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vfz.pipeline.errors import DatasetError
from vfz.pipeline.files import text_of_name

_NOT_SEEN = "\ufeff\u200b"
"""A byte order mark within a file, as two files joined have it, and a blank without width."""


class Place(NamedTuple):
    """Where in an annotation file something stands."""

    path: Path
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


def composed(text: str) -> str:
    """The same letters, each as one character where Unicode has one (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def trimmed(text: str) -> str:
    """Without white space and what is not seen at its ends."""
    text = text.strip()
    return text if text.isascii() else text.strip(_NOT_SEEN).strip()


def clean(text: str) -> str:
    """What a cell, a line or a name says: trimmed and composed."""
    return composed(trimmed(text))


def file_text(name: str) -> str:
    """The name of a file or folder as text: its bytes as UTF-8, whatever the locale, composed.

    Bytes that are no UTF-8 are kept as Python keeps them; `is_text` finds them.
    """
    return name if name.isascii() else composed(text_of_name(name))


def folder_text(name: str) -> str:
    """The name of a folder that says a split or a class: clean, unless nothing would be left of it."""
    text = file_text(name)
    return trimmed(text) or text


_SHARD = re.compile(
    r"[-_.]?(?:\{[0-9]+\.\.[0-9]+\}|[0-9]+[-_.]?of[-_.]?[0-9]+(?:[-_.][0-9a-f]{16})?|[0-9]+)$", re.IGNORECASE
)


def without_shard(stem: str) -> str:
    """The name of a file without its number: `train` of train-00012, val_003, train-00000-of-00010, train-{00..99}."""
    return _SHARD.sub("", stem)


def read_text(path: Path) -> str:
    """All of a UTF-8 file, a byte order mark left out.

    Raises:
        DatasetError: it is not UTF-8.
    """
    raw = path.read_bytes()
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"} or b"\0" in raw[:2]:
        raise DatasetError(f"{path}, line 1: UTF-16 text; save the file as UTF-8 (in Excel: CSV UTF-8)")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + raw[: error.start].count(b"\n")
        raise DatasetError(f"{Place(path, line)}: not UTF-8 text; save the file as UTF-8") from error


def read_lines(path: Path, *, as_written: bool = False) -> Iterator[tuple[Place, str]]:
    """The lines that are not blank, cleaned, or only trimmed where they are wanted `as_written`.

    Raises:
        DatasetError: it is not UTF-8 text.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line := trimmed(line):
            yield Place(path, number), line if as_written else composed(line)


def split_last(line: str) -> tuple[str, str]:
    """A line in front of its last white space and behind it; nothing in front where it has none."""
    front, *behind = line.rsplit(maxsplit=1)
    return (front, behind[0]) if behind else ("", front)


def read_json(path: Path, kind: type) -> Any:
    """A JSON file that holds a list or a dictionary, as `kind` says; its texts as they are.

    Raises:
        DatasetError: it does not, or is no JSON.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{Place(path, error.lineno)}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise DatasetError(f"{path}, line 1: nested too deeply for a file of annotations") from error
    if not isinstance(value, kind):
        raise DatasetError(f"{path}, line 1: a {type(value).__name__} where a {kind.__name__} was expected")
    return value


_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_BLANK_BEHIND_QUOTE = re.compile(r'"[ \t]+(?:[,;\t\r\n]|\Z)')


def read_csv(
    path: Path, *, required: Collection[str], optional: Collection[str] = (), as_written: Collection[str] = ()
) -> Iterator[tuple[Place, dict[str, str]]]:
    """The rows of a file with a header, by column name; of the columns that are known, those that are there.

    The first of comma, semicolon and tab is taken with which the header has all that is required. Columns are known in
    small and capital letters. Rows without any text are passed over.

    Args:
        path: the file.
        required: columns that must be there.
        optional: columns that may be there. Others are left alone, unless one of these is likely to be meant.
        as_written: columns whose text is trimmed and not composed, for it is a path.

    Raises:
        DatasetError: a required column is missing, one is nearly called as a known one that is not there, a row has
            another number of fields, or it is no such file.
    """
    text = read_text(path)
    delimiter = _delimiter_of(text, required)
    if _BLANK_BEHIND_QUOTE.search(text):
        text = _without_blanks_behind_quotes(text, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=delimiter)
    try:
        header = next((row for row in reader if any(map(trimmed, row))), [])
        while header and not trimmed(header[-1]):
            header.pop()
        width = len(header)
        columns = _find_columns(header, Place(path, max(1, reader.line_num)), required, optional)
        readers = [(name, place, trimmed if name in as_written else clean) for name, place in columns.items()]
        for row in reader:
            if len(row) != width:
                if not any(map(trimmed, row)):
                    continue
                if len(row) < width or any(map(trimmed, row[width:])):
                    raise DatasetError(
                        f"{Place(path, reader.line_num)}: {len(row)} fields, the header has {width}; quote those with "
                        f"{_DELIMITERS[delimiter]}"
                    )
            values = {name: read(row[place]) for name, place, read in readers}
            if any(values.values()) or any(map(trimmed, row)):
                yield Place(path, reader.line_num), values
    except csv.Error as error:
        raise DatasetError(f"{Place(path, reader.line_num)}: not comma-separated text: {error}") from error


def column_names(path: Path) -> set[str]:
    """The columns that the header of a file names, in small letters, whatever stands between them.

    Raises:
        DatasetError: it is not UTF-8 text.
    """
    first = next((line for line in read_text(path).splitlines() if trimmed(line)), "")
    parted = ({_folded(name.strip().strip('"')) for name in first.split(delimiter)} for delimiter in _DELIMITERS)
    return max(parted, key=len)


def _delimiter_of(text: str, required: Collection[str]) -> str:
    """What stands between the names of the columns; a comma where no header can be made of it."""
    first = next((line for line in text.splitlines() if trimmed(line)), "")
    for delimiter in _DELIMITERS:
        names = {_folded(name.strip().strip('"')) for name in first.split(delimiter)}
        if names.issuperset(required):
            return delimiter
    return ","


def _without_blanks_behind_quotes(text: str, delimiter: str) -> str:
    """Blanks between a closing quote and what ends its field are left out, since Python's reader refuses them."""
    ends = re.escape(delimiter)
    quoted = rf'((?:\A|[{ends}\n])[ ]*"(?:[^"]|"")*")([ \t]+(?=[{ends}\r\n]|\Z))?'
    return re.sub(quoted, r"\1", text)


_MEANT = {
    "label": "action activity category class classes classid classindex classname groundtruth target targets",
    "path": "file filename filepath files video videofile videoname videos",
    "split": "partition set subset",
}
"""What people call a column instead."""
_NEAR = 0.79


def _find_columns(
    header: Sequence[str], place: Place, required: Collection[str], optional: Collection[str]
) -> dict[str, int]:
    """Where each known column stands.

    Raises:
        DatasetError: one is missing, named twice or nearly named.
    """
    names = [clean(name) for name in header]
    known = (*required, *optional)
    found: dict[str, int] = {}
    for position, name in enumerate(names):
        folded = _folded(name)
        if folded in found or (name and name in names[:position]):
            raise DatasetError(f"{place}: a column is named twice: {', '.join(names)}")
        if folded in known:
            found[folded] = position
    others = [name for name in names if _folded(name) not in known]
    for wanted in known:
        if wanted in found:
            continue
        meant = next((name for name in others if _is_nearly(name, wanted)), None)
        if meant is not None:
            there = ", ".join(map(repr, names))
            raise DatasetError(
                f"{place}: no column {wanted!r} among {there}; is {meant!r} meant? Call it {wanted!r}, or take it out"
            )
        if wanted in required:
            there = ", ".join(map(repr, names)) or "none"
            raise DatasetError(f"{place}: no column {wanted!r} among {there}; name the columns there")
    return found


def _folded(name: str) -> str:
    return clean(name).casefold()


def _is_nearly(name: str, wanted: str) -> bool:
    """Whether a column of another name is likely to be the wanted one."""
    letters, own = (re.sub(r"[\W_]", "", text.casefold()) for text in (name, wanted))
    if len(own) <= 2:  # nearly every short name is like `id`
        return letters == own
    if own in letters or letters in _MEANT.get(wanted, "").split():
        return True
    return bool(difflib.get_close_matches(letters, [own], cutoff=_NEAR))

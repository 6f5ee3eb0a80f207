"""Files that survive a crash: written whole or not at all, checked when they are read, locked while they are written.

A cache is written by machines that are killed, on disks that fill up, by several processes at once.

- Whole files: a file is made under a temporary name, flushed to the disk (fsync), and only then given its name: by a
  rename where the last writer wins, by a hard link where the first one does, since a link fails when the name is taken.
- Checked JSON: a small file says its format version and carries the digest of its own content. There is exactly one
  text for a content (one line per top-level key, canonical JSON within), so no byte can change without being found.
- Locks: a writer holds a lock (flock) on `shards/<name of its data>.lock` from before the first byte until after the
  commit. The system releases it when the process ends, however it ends. So a lock that can be taken proves that the
  writer is gone, also on another machine where the file system shares locks (NFS since version 3 with lockd, Lustre
  with `-o flock`).

Cost: a flush takes milliseconds, which is nothing per shard and too much per frame.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vfz.pipeline.errors import CacheFormatError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WHAT_TO_DO = {
    errno.ENOSPC: "free some space there or choose another folder, then run the same command again",
    errno.EDQUOT: "free some of your quota or choose another folder, then run the same command again",
    errno.EFBIG: "raise the file size limit (ulimit -f) or use smaller shards",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write, or change its permissions",
    errno.EPERM: "choose a folder that you may write, on a file system with hard links",
    errno.EOPNOTSUPP: "choose a folder on a file system with hard links and locks (flock)",
    errno.ENOTDIR: "a part of that path is a file; choose a folder",
    errno.ENOENT: "that place cannot hold files; choose a folder that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), then run the same command again",
    errno.ENFILE: "this machine has too many files open: end what does that, then run the same command again",
    errno.ENOLCK: "choose a folder on a file system with locks (flock)",
    errno.ENOSYS: "choose a folder on a file system with hard links, locks (flock) and fsync",
    errno.EINVAL: "choose a folder on a file system with hard links, locks (flock) and fsync",
}
_OTHERWISE = "see that this disk is in order or choose another folder, then run the same command again"
_OF_THE_PROGRAM = {errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.EBADF, errno.EAGAIN, errno.EINTR, errno.EPIPE}
"""What no disk is to blame for."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the errors of a disk that is full, broken or refuses to be written into one clear line; others pass.

    Args:
        path: what was being written, named in the message.

    Raises:
        StorageError: instead of an `OSError` that the user, not the program, has to act on.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in _OF_THE_PROGRAM:
            raise
        reason = os.strerror(error.errno).lower()
        raise StorageError(f"cannot write {path}: {reason}; {_WHAT_TO_DO.get(error.errno, _OTHERWISE)}") from error


def make_folder(path: Path) -> Path:
    """The folder, made with its parents where it is not there.

    Raises:
        StorageError: when it cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise StorageError(f"cannot make the folder {path}: a file has that name; choose another")
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_file_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that readers and crashes see the old one or the new one, whole. The last writer wins.

    Raises:
        StorageError: when the disk is full or refuses to be written; then `path` is as it was.
    """
    with storage_errors(path), _temporary_file(path, data) as temporary:
        temporary.replace(path)
        fsync_dir(path.parent)


def write_file_once(path: Path, data: bytes) -> bool:
    """Writes a file unless it is already there. The first writer wins, whatever the others do at the same time.

    Returns:
        True when this call made the file, False when it was there (then it is untouched).

    Raises:
        StorageError: when the disk is full, refuses to be written or has no hard links.
    """
    with storage_errors(path), _temporary_file(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may answer "exists" to the repetition of a call that has just succeeded: the inode tells.
            if not temporary.samefile(path):
                return False
        fsync_dir(path.parent)
        return True


@contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A flushed file beside `path`, under a hidden unique name, that is gone afterwards unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{unique_token()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def fsync_file(path: Path) -> None:
    """Flushes a file's bytes to the disk."""
    _fsync(path, os.O_RDONLY)


def fsync_dir(path: Path) -> None:
    """Flushes a folder's list of names to the disk; without it a crash can lose a file that was itself flushed."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def fsync_tree(folder: Path) -> None:
    """Flushes every file and folder under `folder`, and the folder itself."""
    for parent, _, names in os.walk(folder):
        for name in names:
            fsync_file(Path(parent, name))
        fsync_dir(Path(parent))


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, ASCII only. Digests are taken over it.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
        TypeError: for values that are no JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def sha256_hex(data: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a whole file as 64 hexadecimal digits, read in pieces.

    Raises:
        OSError: when the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_of_name(name: str) -> str:
    """A path or the name of a file as text: its bytes as UTF-8, whatever encoding the locale has.

    Bytes that are no UTF-8 become the code points that Python keeps such bytes as.
    """
    if _is_plain(name):
        return name
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:  # a message with such a name in it, and letters that the locale does not have
        raw = name.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "surrogateescape")


def name_of_text(text: str) -> str:
    """The inverse of `text_of_name`: what the file system's functions take for that text."""
    return text if _is_plain(text) else os.fsdecode(text.encode("utf-8", "surrogateescape"))


def _is_plain(text: str) -> bool:
    return text.isascii() or sys.getfilesystemencoding() == "utf-8"


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:::.*)?:/")
"""A path that Python has made of an address has one slash only. A single letter is a drive of Windows, no scheme."""


def is_address(path: str | Path) -> bool:
    """Whether a path is an address such as s3://bucket/x, which names no file of this machine."""
    return _ADDRESS.match(str(path)) is not None


def unique_token() -> str:
    """A random name part that no other writer uses."""
    return secrets.token_hex(8)


FORMAT_VERSION = 1
"""Of every file of a cache. A later vfz must still read the earlier versions."""
_TAIL = re.compile(rb'"digest":"([0-9a-f]{64})"\n}\n')
_TAIL_BYTES = len(b'"digest":""\n}\n') + 64
_MAX_TEXT = 400
_SPARE_FRAMES = 50
_STUMBLES = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)


def checked_json_bytes(content: Mapping[str, Any]) -> bytes:
    """`content` with its `format_version` and `digest` (SHA-256 of the canonical JSON of all the rest), as JSON text.

    Raises:
        ValueError: when the content holds NaN or infinities, or one of the two reserved keys.
        TypeError: when the content is no JSON.
    """
    if content.keys() & {"format_version", "digest"}:
        raise ValueError("the keys format_version and digest are reserved")
    record = {"format_version": FORMAT_VERSION, **content}
    lines = [canonical_json(key) + b":" + canonical_json(record[key]) for key in sorted(record)]
    digest = sha256_hex(b"{" + b",".join(lines) + b"}")
    return b"{\n" + b",\n".join([*lines, b'"digest":' + canonical_json(digest)]) + b"\n}\n"


def write_checked_json_once(path: Path, content: Mapping[str, Any]) -> bool:
    """Writes a checked JSON file unless it is there; True when this call made it.

    Raises:
        StorageError: when the disk is full or refuses to be written.
    """
    return write_file_once(path, checked_json_bytes(content))


def read_checked_json(path: Path, keys: frozenset[str]) -> dict[str, Any]:
    """The content of a checked JSON file, without its version and digest.

    Args:
        path: the file.
        keys: the keys it must have, no more and no less.

    Raises:
        CacheFormatError: when it is not there, no JSON, of another version, changed since it was written, or has
            other keys.
    """
    try:
        data = path.read_bytes()
        record = _parse(data)
    except OSError as error:
        raise CacheFormatError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CacheFormatError(f"{path} is damaged: not JSON ({error}); restore it or extract again") from error
    if not isinstance(record, dict):
        raise CacheFormatError(f"{path} is damaged: a JSON object is expected, found {type(record).__name__}")
    version = record.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CacheFormatError(f"{path} has format version {version!r}; this vfz reads {FORMAT_VERSION}: upgrade vfz")
    record.pop("digest", None)
    with content_errors(path):
        expected = checked_json_bytes(record)
    if data != expected:
        raise CacheFormatError(
            f"{path} was changed after it was written: its digest does not match; restore it or extract again"
        )
    if record.keys() != keys:
        raise CacheFormatError(f"{path} is damaged: its keys are {sorted(record)}, expected {sorted(keys)}")
    return record


def read_checked_json_digest(path: Path) -> str:
    """The digest at the end of a checked JSON file. The rest is neither read nor compared with it.

    Raises:
        CacheFormatError: when the file is not there or does not end in a digest.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            match = _TAIL.fullmatch(file.read())
    except OSError as error:
        raise CacheFormatError(f"cannot read {path}: {error.strerror}") from error
    if match is None:
        raise CacheFormatError(f"{path} is damaged: it does not end in its digest; restore it or extract again")
    return match[1].decode()


@contextmanager
def content_errors(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file's content is used into one clear line; the content may be any JSON.

    Raises:
        CacheFormatError: instead of the error that Python raises for a value of another form.
    """
    try:
        yield
    except (*_STUMBLES, CacheFormatError) as error:
        text = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).splitlines())
        if len(text) > _MAX_TEXT:
            text = f"{text[:_MAX_TEXT]}…"
        raise CacheFormatError(f"{path} is damaged: {text}; restore it or extract again") from error


def _parse(data: bytes, spare_frames: int = _SPARE_FRAMES) -> Any:
    """The JSON value. One that is nested too deep is refused: a later walk through it would use up Python's stack."""
    return _parse(data, spare_frames - 1) if spare_frames else json.loads(data, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


LOCK_SUFFIX = ".lock"


@contextmanager
def writer_lock(data_path: Path) -> Iterator[None]:
    """Holds the lock of `data_path` while the block runs: this process is writing it.

    Raises:
        StorageError: when the lock cannot be made.
    """
    path = lock_path(data_path)
    unlocked = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        file = unlocked.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            unlocked.rename(path)  # nobody sees it before it is locked
        except OSError:
            unlocked.unlink(missing_ok=True)
            file.close()
            raise
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def writer_is_gone(data_path: Path) -> bool:
    """Whether no process writes that data any more."""
    try:
        return not lock_is_held(lock_path(data_path))
    except FileNotFoundError:
        return True  # the lock is made before the data and removed after it was committed or deleted


def lock_is_held(path: Path) -> bool:
    """Whether a living process holds that lock.

    Raises:
        FileNotFoundError: when it is gone.
    """
    # NFS locks a file for one process alone only where that may write it.
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def lock_path(data_path: Path) -> Path:
    """The lock file of that data's writer."""
    return data_path.with_name(data_path.name + LOCK_SUFFIX)

"""What a decoder takes and gives: where a video's bytes lie, and RGB frames with their times.

A `VideoSource` is a file, or a member of a tar that is read in place, without unpacking it. A `Decoder` takes one and a
rule that says which frames, and gives `VideoFrame`s.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Protocol, Self, cast

from vfz.pipeline.errors import DatasetError, DecodeError

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer

    from vfz.pipeline.recipe import FrameSpec

SOURCE_DIGEST_BYTES = 64 * 1024
"""How much of each end of a source `VideoSource.digest` reads."""
_MEMBER = "::"


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSource:
    """A video's bytes.

    Attributes:
        path: the file, or the tar that holds it; it need not exist.
        member: its name in the tar; None for a file of its own.
        offset: where the member's bytes begin in the tar.
        num_bytes: how many there are; None for a file, which is read to its end.
    """

    path: Path
    member: str | None = None
    offset: int = 0
    num_bytes: int | None = None

    def __str__(self) -> str:
        """The path, and behind `::` the member; `parse` is the inverse."""
        return str(self.path) if self.member is None else f"{self.path}{_MEMBER}{self.member}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The source that a ledger names; a member is looked up in its tar.

        Raises:
            DatasetError: the tar is not there, is no tar, or has no such member.
        """
        path, separator, member = text.partition(f".tar{_MEMBER}")
        if not separator or Path(text).exists():
            return cls(path=Path(text))
        tar = Path(f"{path}.tar")
        try:
            with tarfile.open(tar, "r:") as archive:
                found = next((info for info in archive if info.name == member and info.isfile()), None)
        except (OSError, tarfile.TarError) as error:
            raise DatasetError(f"{tar} cannot be read as a tar ({error}), {member!r} is looked for in it") from error
        if found is None:
            raise DatasetError(f"{tar} has no member {member!r}")
        return cls(path=tar, member=member, offset=found.offset_data, num_bytes=found.size)

    @property
    def name(self) -> str:
        """The file's own name, for messages."""
        return self.path.name if self.member is None else f"{self.path.name}{_MEMBER}{self.member}"

    def absolute(self) -> VideoSource:
        """The same, whatever the working directory will be."""
        return replace(self, path=self.path.absolute())

    def exists(self) -> bool:
        """Whether the file, or the tar, is there; a link that leads nowhere, or in a circle, is not."""
        return os.path.exists(self.path)  # noqa: PTH110 - Path.exists raises for a name that is too long

    def open(self) -> BinaryIO:
        """The bytes, readable and seekable.

        Raises:
            OSError: when the file is not there, cannot be read, or is a folder, a pipe or a device.
        """
        file = open(self.path, "rb", opener=_open_regular)  # noqa: SIM115 - Path.open takes no opener
        if self.member is None:
            return file
        return cast("BinaryIO", io.BufferedReader(_Section(file, self.offset, self.num_bytes or 0)))

    def digest(self) -> str:
        """A cheap digest: SHA-256 over the number of bytes and the first and last 64 KiB.

        It tells another video under the same name from the same one without reading gigabytes; it is no proof against
        someone who changes bytes in the middle on purpose.

        Raises:
            OSError: when the file is not there or cannot be read.
        """
        with self.open() as file:
            num_bytes = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(num_bytes.to_bytes(8, "little"))
            file.seek(0)
            digest.update(file.read(SOURCE_DIGEST_BYTES))
            file.seek(max(0, num_bytes - SOURCE_DIGEST_BYTES))
            digest.update(file.read(SOURCE_DIGEST_BYTES))
        return digest.hexdigest()


MAX_SECONDS = 2**31 - 1
"""Times of frames go so far, 68 years; a cache's ledger holds no larger numbers."""


@dataclass(frozen=True, kw_only=True)
class VideoFrame:
    """One frame.

    Attributes:
        pixels_HWC: uint8 RGB, without gaps in memory (C-contiguous), so that it may be sent as it is;
            not written to again, since several frames are sent together.
        pts_seconds: its presentation time, in seconds from the first frame shown; strictly increasing in a video.
        number: of the frame among all that the video shows, from 0: how many had to be decoded before it.
    """

    pixels_HWC: np.ndarray
    pts_seconds: float
    number: int


class Decoder(Protocol):
    """Turns videos into frames.

    Attributes:
        name: as recipes and `DECODERS` call it.
        version: raised whenever the same video and rule give other pixels or other times.
        goes_on_with: earlier versions that it can keep to, so that their caches can grow: of a video whose frames would
            now be others it gives what it gave then, or refuses it.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    goes_on_with: ClassVar[tuple[int, ...]]

    def frames(self, source: VideoSource, spec: FrameSpec) -> Iterator[VideoFrame]:
        """The frames that a rule chooses, in order of time, in one pass that holds a few of them.

        Raises:
            DecodeError: while iterating: the video is not there, is damaged or cut short, or has no frame to give;
                frames given before that are not to be kept.
        """


def refuse_odd_files(source: VideoSource) -> None:
    """Refuses a source that would block when it is read, or give nothing.

    Raises:
        DecodeError: a folder, a pipe or a device, or no bytes.
        OSError: the file is not there.
    """
    details = source.path.stat()
    if not stat.S_ISREG(details.st_mode):
        raise DecodeError(f"{source.name}: is no regular file")
    if not (details.st_size if source.num_bytes is None else source.num_bytes):
        raise DecodeError(f"{source.name}: the file is empty")


def _open_regular(path: str, flags: int) -> int:
    """Opens a regular file. It does not wait for someone to write, as opening a pipe does."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # no pipe, but a file that another process has a lease on, and is asked to give up
        descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", path)
    return descriptor


class _Section(io.RawIOBase):
    """A run of bytes of a file as a file of its own; closing it closes the file."""

    def __init__(self, file: BinaryIO, offset: int, num_bytes: int) -> None:
        self._file, self._offset, self._num_bytes, self._position = file, offset, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}, before the start")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._num_bytes - self._position))
        self._file.seek(self._offset + self._position)
        found = self._file.readinto(view[:count])  # type: ignore[attr-defined]
        self._position += found
        return int(found)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

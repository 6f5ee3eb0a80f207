"""The bytes of a tar shard that are no tokens: what its members are called and the headers before their contents.

They follow from the video, the array's shape and its dtype alone. So equal tokens give equal archives, and a reader
knows what must stand before a payload without parsing anything: it compares. For the same reason they are made here and
not by `tarfile` and `numpy`, whose choices (padding, device numbers) have changed between versions; tests hold them
equal to today's. GNU format, which every tar reads: long names in an extra member, sizes above 8 GiB in base 256.

webdataset takes the part of a name before its first dot as the sample's key, so ids are escaped: `%` and two
hexadecimal digits for each UTF-8 byte of a dot, slash, percent sign or anything else a file name had better not have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vfz.pipeline.files import canonical_json

if TYPE_CHECKING:
    from vfz.pipeline.stores.metadata import ArraySpec

BLOCK_BYTES = 512
"""Headers and contents begin at multiples of this."""
_RECORD_BYTES = 20 * BLOCK_BYTES
_NPY_HEADER_BYTES = 128  # fits three dimensions of 19 digits, and is what numpy writes
_MAX_NAME_BYTES = 100

# Written out rather than asked of `str.isprintable`, which answers differently from one Python version to the next:
# controls, separators, marks without width or against the reading direction, surrogates, and what Windows refuses.
_UNSAFE = re.compile(
    '[\x00-\x1f%./\\\\:*?"<>|\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff0-\uffff]'
)


def sample_name(video_id: str, view: int) -> str:
    """What the members of a video are called up to their first dot; another video or view has another name.

    `%` is followed by two hexadecimal digits wherever it stands for a character of the id, so `%view1` cannot be one.
    """
    escaped = _UNSAFE.sub(_percent, video_id) or "%empty"
    return escaped if view == 0 else f"{escaped}%view{view}"


def array_header(name: str, spec: ArraySpec, num_frames: int) -> bytes:
    """Everything from the end of the member before to the first byte of an array's payload.

    Args:
        name: the video's, from `sample_name`.
        spec: the array, `layer_5/patch` being the member `<name>.layer_5.patch.npy`.
        num_frames: of the video; the header's length does not depend on it.
    """
    shape = (num_frames, *spec.frame_shape)
    text = f"{{'descr': '{spec.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    preamble = b"\x93NUMPY\x01\x00" + (_NPY_HEADER_BYTES - 10).to_bytes(2, "little")
    npy = preamble + text.encode("ascii").ljust(_NPY_HEADER_BYTES - len(preamble) - 1) + b"\n"
    member = f"{name}.{spec.key.replace('/', '.')}.npy"
    return tar_header(member, len(npy) + num_frames * spec.frame_bytes) + npy


def json_member(name: str, *, video_id: str, view: int, split: str, label: int | None, num_frames: int) -> bytes:
    """The member `<name>.json`, header and padding included: what a reader without vfz cannot take from the arrays."""
    content = canonical_json(
        {"id": video_id, "view": view, "split": split, "label": label, "num_frames": num_frames},
    )
    return tar_header(f"{name}.json", len(content)) + content + padding(len(content))


def padding(num_bytes: int) -> bytes:
    """The zeros between contents of that size and the next header."""
    return bytes(-num_bytes % BLOCK_BYTES)


def end_of_archive(num_bytes: int) -> bytes:
    """The zeros after members of so many bytes in total: two blocks, and then to the end of a record of 10 KiB."""
    marked = num_bytes + 2 * BLOCK_BYTES
    return bytes(marked + -marked % _RECORD_BYTES - num_bytes)


def tar_header(name: str, num_bytes: int) -> bytes:
    """The header of a regular file of mode 0644, owned by number 0 without a name, last changed in 1970."""
    raw = name.encode()
    header = _block(raw[:_MAX_NAME_BYTES], num_bytes, mode=0o644, kind=b"0")
    if len(raw) <= _MAX_NAME_BYTES:
        return header
    raw += b"\0"
    return _block(b"././@LongLink", len(raw), mode=0, kind=b"L") + raw + padding(len(raw)) + header


def _block(name: bytes, num_bytes: int, *, mode: int, kind: bytes) -> bytes:
    """One header block: name, mode, owner, group, size, time, checksum, kind, and the rest, which is empty."""
    size = b"%011o\0" % num_bytes if num_bytes < 8**11 else b"\x80" + num_bytes.to_bytes(11, "big")
    before = name.ljust(100, b"\0") + b"%07o\0" % mode + 2 * b"0000000\0" + size + b"00000000000\0"
    after = (kind + bytes(100) + b"ustar  \0").ljust(BLOCK_BYTES - len(before) - 8, b"\0")
    # The checksum counts its own eight bytes as spaces.
    return before + b"%06o\0 " % (sum(before) + sum(after) + 8 * ord(" ")) + after


def _percent(match: re.Match[str]) -> str:
    """A character as `%XX` per byte of its UTF-8, which file names that are no UTF-8 need `surrogatepass` for."""
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogatepass"))

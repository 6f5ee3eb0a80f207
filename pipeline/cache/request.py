"""What a caller of `FeatureCache` asks for, checked: layers and parts, frames, a time window, clips of a batch.

Every check costs nothing that can be measured beside a read: some 2 µs in all. What is refused is a `UsageError` of one
line.

Shapes: T frames of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from reprlib import Repr
from typing import Any, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.recipe import counted_layers
from vfz.pipeline.stores import Checksums, Column
from vfz.pipeline.stores.base import FrameNumbers

Frames: TypeAlias = slice | Sequence[int] | NDArray[np.integer[Any]]
Layers: TypeAlias = int | str | Sequence[int | str]
"""One layer or several."""
Parts: TypeAlias = str | Sequence[str]
"""One part or several."""
Columns: TypeAlias = Mapping[tuple[str, str], Column]
"""By (layer, part)."""

_NAME = (str, int, np.integer)
_WHOLE = (int, np.integer)
_NUMBER = (int, float, np.integer, np.floating)
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class ClipLike(Protocol):
    """A clip that `FeatureCache.read_batch` takes: a video, a view of it, and which of its frames."""

    @property
    def id(self) -> str:
        """The video."""

    @property
    def view(self) -> int:
        """Which crop."""

    @property
    def frames(self) -> Frames:
        """Its frames, as `FeatureCache.read` takes them."""


def is_whole(value: object) -> bool:
    """Whether it is a whole number, Python's or NumPy's."""
    return isinstance(value, _WHOLE)


def as_names(chosen: Layers, kind: str) -> tuple[str, ...]:
    """Layers or parts as texts: `11` and `"11"` are a selection of one.

    Args:
        chosen: one, or several.
        kind: `layers` or `parts`, for the message.

    Raises:
        UsageError: when it is neither a name or number nor several of them.
    """
    if isinstance(chosen, _NAME):
        return (str(chosen),)
    try:
        return tuple(map(str, chosen))
    except TypeError:  # nothing to go through
        raise UsageError(
            f"{kind} is {shown(chosen)}; a name, a number or several of them are needed, or None for all"
        ) from None


def select_columns(columns: Columns, layers: Layers | None, parts: Parts | None, *, where: str) -> Columns:
    """The columns of some layers and parts; a part may be absent from some of the layers, not from all.

    Args:
        columns: all there are.
        layers: None means all.
        parts: None means all that each layer has.
        where: the cache, for messages.

    Raises:
        UnknownNameError: for a layer or part that is not there.
        UsageError: when none is chosen.
    """
    if layers is None and parts is None:
        return columns
    known = list(dict.fromkeys(layer for layer, _ in columns))
    chosen = known if layers is None else counted_layers(as_names(layers, "layers"), known)
    if not chosen:
        raise UsageError(f"layers is empty; name some of the layers {', '.join(known)} of {where}, or None for all")
    for layer in chosen:
        if layer not in known:
            raise UnknownNameError("layer", layer, known, hint=f"({where} has {', '.join(known)})")
    cached = {part for layer, part in columns if layer in chosen}
    named = cached if parts is None else as_names(parts, "parts")
    if not named:
        raise UsageError(
            f"parts is empty; name some of the parts {', '.join(sorted(cached))} of layers {', '.join(chosen)} in "
            f"{where}, or None for all"
        )
    for part in named:
        if part not in cached:
            raise UnknownNameError(f"part of layers {', '.join(chosen)} in {where}", part, cached)
    return {
        (layer, part): column
        for wanted in chosen
        for (layer, part), column in columns.items()
        if layer == wanted and part in named
    }


def check_checksums(checksums: object) -> None:
    """Refuses a value that does not say when checksums are compared.

    Raises:
        UsageError: it is none of the choices; names them.
    """
    if checksums not in (allowed := get_args(Checksums)):
        raise UsageError(f"checksums is {shown(checksums)}; allowed are {', '.join(allowed)}")


def check_video(video_id: object, view: object) -> None:
    """Refuses a video and a view that cannot be looked up.

    Raises:
        UsageError: the id is no text, or the view no whole number.
    """
    if not isinstance(video_id, str) or not isinstance(view, _WHOLE):
        raise UsageError(
            f"video {shown(video_id)}, view {shown(view)} cannot be looked up; the id is a text, the view a number"
        )


def check_group(split: object, *, view: object, fold: object) -> None:
    """Refuses what cannot name videos: their split, fold or view.

    Raises:
        UsageError: split or fold is neither a text nor None, or the view no whole number.
    """
    for name, value in (("split", split), ("fold", fold)):
        if not isinstance(value, str | None):
            raise UsageError(f"{name} is {shown(value)}; its name is needed, or None")
    if not is_whole(view):
        raise UsageError(f"view is {shown(view)}; its number is needed")


def clips_of(clips: Sequence[tuple[str, Frames] | ClipLike]) -> list[tuple[str, int, Frames]]:
    """Video, view and frames of every clip of a batch.

    Raises:
        UsageError: when one is neither a pair nor an object with these attributes.
    """
    if not isinstance(clips, Iterable):
        raise UsageError(f"clips is {shown(clips)}; a list of clips is needed")
    return [_clip_of(clip) for clip in clips]


def _clip_of(clip: tuple[str, Frames] | ClipLike) -> tuple[str, int, Frames]:
    if isinstance(clip, tuple) and len(clip) == 2:
        return clip[0], 0, clip[1]
    try:
        return clip.id, clip.view, clip.frames  # a longer tuple has none of them
    except AttributeError as error:
        raise UsageError(
            f"a clip of the batch is {shown(clip)}; each must be a tuple (video id, frames), or an object with id, "
            "view and frames"
        ) from error


def check_seconds(seconds: object, frames: Frames | None) -> None:
    """Refuses what is no time window (start, end), and a window where frames are given too.

    Raises:
        UsageError: unless they are two numbers, the start not after the end, and frames None.
    """
    if frames is not None:
        raise UsageError(f"frames={shown(frames)} and seconds={shown(seconds)} exclude each other; give one of them")
    window = tuple(seconds) if isinstance(seconds, Iterable) else ()
    if len(window) != 2 or not all(isinstance(time, _NUMBER) and not math.isnan(time) for time in window):
        raise UsageError(f"seconds is {shown(seconds)}; two numbers are needed: (start, end)")
    if window[0] > window[1]:
        raise UsageError(f"seconds is {shown(seconds)}, which ends before it starts; (start, end) is needed")


def frame_numbers(frames: Frames | None, num_video_frames: int, video_id: str) -> FrameNumbers:
    """[T] frame numbers of a video, all in range; None means all. A range stays a range.

    Raises:
        UsageError: when they are no whole numbers, or the video does not have them.
    """
    if frames is None:
        return range(num_video_frames)
    if isinstance(frames, slice):
        try:
            return range(*frames.indices(num_video_frames))
        except (TypeError, ValueError) as error:  # numbers that are not whole; a step of 0
            raise UsageError(f"frames is {shown(frames)}; a slice of whole numbers is needed ({error})") from None
    if isinstance(frames, range) and frames:  # the usual clip, in a fifth of the time
        _check_bounds(min(frames[0], frames[-1]), max(frames[0], frames[-1]), num_video_frames, video_id)
        return frames
    try:
        numbers = np.asarray(frames)
    except (TypeError, ValueError):  # rows of several lengths; an array that is on a GPU
        numbers = np.empty(())
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise UsageError(f"frames is {shown(frames)}; a slice, whole numbers or None is needed")
    numbers = numbers.astype(np.int64, copy=False)
    if numbers.size:
        _check_bounds(int(numbers.min()), int(numbers.max()), num_video_frames, video_id)
    return numbers


def _check_bounds(lowest: int, highest: int, num_video_frames: int, video_id: str) -> None:
    if not 0 <= lowest <= highest < num_video_frames:
        raise UsageError(
            f"video {video_id!r} has the frames 0 to {num_video_frames - 1}; {lowest} to {highest} requested"
        )


def shown(value: object) -> str:
    """A value in a message: on one line, and not all of it where it is long."""
    return " ".join(_SHORT.repr(value).split())

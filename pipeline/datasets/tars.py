"""Videos in WebDataset tars, read in place: nothing is unpacked.

    <root>/<split>/*.tar, or <root>/*.tar        of these the split is the name up to its number: train-00012.tar,
                                                  train-00000-of-00010.tar
        <key>.mp4                                 any video suffix
        <key>.cls                                 its label, a whole number from 0; or else
        <key>.json                                with the label, a number or a class name, under `label`

An id is the key, composed: the member's path up to the first dot of its name. Other members, such as captions in
`<key>.txt`, are not read, and counted. What makes a sample is webdataset's to say (`group_by_keys`): members of one key
side by side, by suffixes in small letters. Where a name has more dots (v1.2.mp4), a label is the one with the same dots
as its video, else `<key>.cls`, else the only one there is. A label or a link that webdataset would leave out without a
word is an error here.

Headers are read with tarfile, and not through `webdataset.WebDataset`, which gives contents but not their places, and
reads every byte of every video to reach the next header: 1 s per GB that is in memory, else the disk's time. The tars
must not be compressed, since videos inside could not be reached without unpacking.

Cost: every header of every tar and every label is read, some 0.05 ms a member where they are in memory: half a minute
for 240,000 videos with labels, more over a network. webdataset imports torch, a second where it is not loaded yet.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vfz.pipeline.datasets.annotations import (
    AnnotatedDataset,
    Listing,
    check_id,
    check_number,
    number_classes,
)
from vfz.pipeline.datasets.base import HIDDEN, VIDEO_SUFFIXES, LeftOut, VideoRecord, is_hidden, safe_name
from vfz.pipeline.datasets.text import Place, clean, composed, file_text, folder_text, trimmed, without_shard
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError
from vfz.pipeline.files import name_of_text

_LABELS = (".cls", ".json")
_NOT_HIDDEN = frozenset({"", ".", ".."})
_MOST_LETTERS = 4096
"""In a name, as on Linux: webdataset takes hours for a million slashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Video:
    place: Place
    key: str
    source: VideoSource
    split: str
    label: str | None


class _Member(NamedTuple):
    """What webdataset groups in place of a member's content."""

    place: Place
    info: tarfile.TarInfo


class TarsDataset(AnnotatedDataset):
    """`root/<split>/*.tar` or `root/*.tar` of videos."""

    layout = "a folder with <split>/*.tar or <split>-<number>.tar, plain tars of <key>.mp4 and <key>.cls or .json"

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        left_out = LeftOut()
        in_root, folders = _tars_in(root, left_out)
        tars = [(path, _split_of(path)) for path in in_root]
        for folder in folders:
            in_folder, deeper = _tars_in(folder, left_out)
            left_out.add("in folders too deep", len(deeper))
            tars += [(path, folder_text(folder.name)) for path in in_folder]
        if not tars:
            raise self.nothing_there(root, "no tars")
        videos = [video for path, split in tars for video in _read_tar(path, split, left_out)]
        if not videos:
            raise self.nothing_there(root, f"{len(tars)} tars without any video")
        class_names, labels = number_classes((video.place, video.label) for video in videos)
        records = [
            (
                video.place,
                VideoRecord(
                    id=video.key,
                    source=video.source,
                    split=video.split,
                    label=None if video.label is None else labels[video.label],
                ),
            )
            for video in videos
        ]
        return Listing(name=safe_name(root), class_names=class_names, records=records, left_out=left_out)


def _tars_in(folder: Path, left_out: LeftOut) -> tuple[list[Path], list[Path]]:
    """The tars and the folders in a folder, by name; the rest is counted.

    Raises:
        DatasetError: the suffix of one is not in small letters, by which members of tars are found again.
    """
    tars, folders = [], []
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            left_out.add(HIDDEN)
        elif path.is_dir():
            folders.append(path)
        elif path.suffix == ".tar":
            tars.append(path)
        elif path.suffix.lower() == ".tar":
            raise DatasetError(f"{path}: the suffix is to be .tar in small letters; rename the file")
        else:
            left_out.add("no plain tar")
    return tars, folders


def _split_of(path: Path) -> str:
    """`train-00012.tar` is of `train`; a tar with nothing but a number is of `all`."""
    return trimmed(without_shard(file_text(path.stem))) or "all"


def _read_tar(path: Path, split: str, left_out: LeftOut) -> Iterator[_Video]:
    from webdataset.tariterators import group_by_keys  # takes torch along

    with_video: set[str] = set()
    without: dict[str, Place] = {}
    try:
        # Names are UTF-8 whatever the locale; bytes that are none are refused with the id.
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            for sample in group_by_keys(_members(archive, path, left_out)):
                key = composed(sample["__key__"])
                kinds = [kind for kind in sample if not kind.startswith("__")]
                videos = [kind for kind in kinds if _suffix(kind) in VIDEO_SUFFIXES]
                labels = [kind for kind in kinds if _suffix(kind) in _LABELS]
                for kind in videos:  # of two, the second is refused as if it were in another tar
                    place, info = sample[kind]
                    member = name_of_text(info.name)
                    source = VideoSource(path=path, member=member, offset=info.offset_data, num_bytes=info.size)
                    _check_plain(place, info)
                    label = _read_label(archive, [sample[name] for name in _labels_of(kind, labels, sample)])
                    yield _Video(place=place, key=check_id(key, place), source=source, split=split, label=label)
                    with_video.add(key)
                for kind in kinds:
                    if kind not in videos and not (videos and kind in labels):
                        left_out.add_no_video(f"x.{kind}")
                if labels and not videos:
                    without[key] = sample[labels[0]].place
            _check_end(archive, path)
    except (tarfile.TarError, ValueError) as error:  # ValueError: a name comes twice, or tarfile meets odd headers
        why = str(error.args[0]).partition(" in tar file ")[0]
        raise DatasetError(f"{path} cannot be read as a plain tar: {why}; make it again, uncompressed") from error
    if apart := without.keys() & with_video:
        key = min(apart)
        raise DatasetError(
            f"{without[key]}: the label of {key!r} is apart from its video; put the members of a sample side by side, "
            "as `tar --sort=name` does"
        )


def _suffix(kind: str) -> str:
    """Of what webdataset calls a member of a sample: all behind the first dot, in small letters."""
    return f".{kind.rpartition('.')[2]}"


def _labels_of(video: str, labels: list[str], sample: dict[str, Any]) -> list[str]:
    """Which members may say the label of a video, the likeliest first.

    Raises:
        DatasetError: there are several .cls, and none is called as the video or the sample.
    """
    dots = video.rpartition(".")[0]
    own = [name for suffix in _LABELS for name in (f"{dots}{suffix}".lstrip("."), suffix[1:]) if name in labels]
    others = [name for name in labels if _suffix(name) == ".cls"]
    if own or not others:
        return own
    if len(others) > 1:
        shown = " and ".join(repr(sample[name].info.name) for name in others[:2])
        raise DatasetError(f"{sample[others[1]].place}: {shown} could both be the label of one video; keep one")
    return others


def _members(archive: tarfile.TarFile, path: Path, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """All but folders, as webdataset has them after reading, with `_Member`s for contents; hidden ones are counted."""
    for number, info in enumerate(archive, start=1):
        place = Place(path, number, "member")
        # With fewer than no bytes tarfile goes back, and round in circles.
        if info.size < 0 or len(info.name) > _MOST_LETTERS:
            raise DatasetError(f"{place}: {info.size} bytes by a name of {len(info.name)} letters; make the tar again")
        if info.isdir():
            continue
        name = info.name.removeprefix("./")
        if any(is_hidden(part) for part in name.split("/") if part not in _NOT_HIDDEN):
            left_out.add(HIDDEN)
        elif "." not in name.rpartition("/")[2]:
            left_out.add_no_video(name)
        else:
            yield {"fname": name, "data": _Member(place, info), "__url__": str(path)}


def _check_plain(place: Place, info: tarfile.TarInfo) -> None:
    if not info.isfile() or info.issparse():
        raise DatasetError(f"{place}: {info.name!r} is a link or has holes; put the file itself into the tar")


def _read_label(archive: tarfile.TarFile, members: list[_Member]) -> str | None:
    """What the first of them says that says anything."""
    for place, info in members:
        _check_plain(place, info)
        file = archive.extractfile(info)
        raw = file.read() if file else b""
        if not info.name.lower().endswith(".json"):
            return str(check_number(clean(raw.decode("utf-8-sig", "replace")), place, what="label"))
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place}: {info.name!r} is not JSON: {error}") from error
        label = content.get("label") if isinstance(content, dict) else None
        if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
            raise DatasetError(f"{place}: the label {label!r} in {info.name!r} is neither a number nor a class name")
        if label is not None:
            return clean(str(label)) or None
    return None


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Zeros, or nothing, behind the last member: `tarfile` takes a damaged header for the end, too."""
    with path.open("rb") as file:
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise DatasetError(f"{path} is damaged: there is no header at byte {archive.offset}; make it again")

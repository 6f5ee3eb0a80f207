"""Videos in WebDataset tars, read in place: nothing is unpacked.

    <root>/<split>/*.tar, or <root>/*.tar        of these the split is the name up to its number: train-00012.tar
        <key>.mp4                                 any video suffix
        <key>.cls                                 its label, a whole number from 0; or else
        <key>.json                                with the label, a number or a class name, under `label`

An id is the key: the member's path up to the first dot of its name. Other members, such as captions in `<key>.txt`, are
not read. The tars must not be compressed, since videos inside could not be reached without unpacking.

Cost: every header of every tar and every label is read, some 0.1 ms a member where the disk has them at hand: a minute
for 240,000 videos with labels, more over a network.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vfz.pipeline.datasets.annotations import AnnotatedDataset, Listing, Place, check_id, check_number, number_classes
from vfz.pipeline.datasets.base import VIDEO_SUFFIXES, VideoRecord, safe_name
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import DatasetError

_NUMBER_AT_END = re.compile(r"[-_.]?[0-9]+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Video:
    place: Place
    key: str
    source: VideoSource
    split: str
    label: str | None


class TarsDataset(AnnotatedDataset):
    """`root/<split>/*.tar` or `root/*.tar` of videos."""

    layout = "a folder with <split>/*.tar or <split>-<number>.tar, plain tars of <key>.mp4 and <key>.cls or .json"

    def read_annotations(self, root: Path) -> Listing:
        """See `AnnotatedDataset.read_annotations`."""
        tars = [(path, _split_of(path)) for path in _tars_in(root)]
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        tars += [(path, folder.name) for folder in folders for path in _tars_in(folder)]
        if not tars:
            raise self.nothing_there(root, "no tars")
        videos = [video for path, split in tars for video in _read_tar(path, split)]
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
        return Listing(name=safe_name(root), class_names=class_names, records=records)


def _tars_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith("."))


def _split_of(path: Path) -> str:
    """`train-00012.tar` is of `train`; a tar with nothing but a number is of `all`."""
    return _NUMBER_AT_END.sub("", path.stem) or "all"


def _read_tar(path: Path, split: str) -> Iterator[_Video]:
    videos: dict[str, tuple[Place, VideoSource]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for number, info in enumerate(archive, start=1):
                if info.isdir():
                    continue
                place = Place(path, number, "member")
                key, extension = _split_name(info.name)
                if PurePosixPath(f"x.{extension}").suffix.lower() in VIDEO_SUFFIXES:
                    if key in videos:
                        raise DatasetError(f"{place}: the video {key!r} was named before, in {videos[key][0]}")
                    videos[check_id(key, place)] = place, _source(path, info, place)
                elif extension in {"cls", "json"} and info.isfile():
                    label = _read_label(archive, info, extension, place)
                    if label is not None and (extension == "cls" or key not in labels):
                        labels[key] = label
            _check_end(archive, path)
    except tarfile.TarError as error:
        raise DatasetError(f"{path} cannot be read as a plain tar: {error}; make it again, uncompressed") from error
    for key, (place, source) in videos.items():
        yield _Video(place=place, key=key, source=source, split=split, label=labels.get(key))


def _split_name(name: str) -> tuple[str, str]:
    """A member's key and what follows, as webdataset has it: the name is cut at its first dot, the folder is not."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension


def _source(path: Path, info: tarfile.TarInfo, place: Place) -> VideoSource:
    if not info.isfile() or info.issparse():
        raise DatasetError(f"{place}: {info.name!r} is a link or has holes; put the file itself into the tar")
    return VideoSource(path=path, member=info.name, offset=info.offset_data, num_bytes=info.size)


def _read_label(archive: tarfile.TarFile, info: tarfile.TarInfo, extension: str, place: Place) -> str | None:
    file = archive.extractfile(info)
    raw = file.read() if file else b""
    if extension == "cls":
        return str(check_number(raw.decode("ascii", "replace").strip(), place, what="label"))
    try:
        content = json.loads(raw)
    except ValueError as error:
        raise DatasetError(f"{place}: {info.name!r} is not JSON: {error}") from error
    label = content.get("label") if isinstance(content, dict) else None
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise DatasetError(f"{place}: the label {label!r} in {info.name!r} is neither a number nor a class name")
    return None if label is None else str(label)


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Zeros, or nothing, behind the last member: `tarfile` takes a damaged header for the end, too."""
    with path.open("rb") as file:
        file.seek(archive.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise DatasetError(f"{path} is damaged: there is no header at byte {archive.offset}; make it again")

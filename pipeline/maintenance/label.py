"""`vfz cache label`: other labels or splits for the videos of a cache, without encoding one of them again.

    label_cache(LabelOptions(cache=path, from_="verbs.csv"))
    FeatureCache(path, labels="verbs").class_names

A label set is made of what a source says (`label_source.py`). What it does not say, labels or splits, is as in the set
that is replaced, or else as the cache was extracted. Splits can be dealt anew, by what is in the files, whose digests
the cache knows.

A line is matched to a video as `matching.py` does it, by the digest of its file where the source is a folder of videos.
One that may be of two is refused: a guess would be a wrong label. One that is of none is counted, unless all are.

Cost: reading the source and the ledger; of a folder of videos, 128 KiB of each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfz.pipeline.datasets.base import VideoRecord, safe_name
from vfz.pipeline.datasets.splits import SplitRule, deal, describe
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.errors import CacheError, CacheFormatError, DatasetError, UsageError
from vfz.pipeline.files import content_errors, name_of_text
from vfz.pipeline.format.catalog import open_catalog
from vfz.pipeline.format.folder import CacheFolder, find_cache
from vfz.pipeline.format.labels import Label, LabelSet, label_set_names, num_in_splits, read_label_set, write_label_set
from vfz.pipeline.format.ledger import LedgerRow, LedgerRows
from vfz.pipeline.maintenance.label_source import LabelLine, LabelSource, read_source
from vfz.pipeline.maintenance.matching import VideoMatcher

if TYPE_CHECKING:
    from vfz.pipeline.cache.feature_cache import FeatureCache
    from vfz.pipeline.maintenance.options import LabelOptions

_NUM_THREADS = 16
_SHOWN = 3


def label_cache(options: LabelOptions) -> LabelReport:
    """Adds a label set to a cache, or replaces one.

    Raises:
        UsageError: the source is not there, or options contradict each other.
        DatasetError: the source has a mistake, a line fits several videos, or none fits any; nothing is written.
        CacheFormatError: the cache is damaged.
        StorageError: the disk is full or refuses to be written.
    """
    path = find_cache(options.cache, how="as CACHE")
    cache = CacheFolder(path)
    rows = _first_rows(cache)
    name = options.name or _name_of(options.from_)
    before, lines = _before(path, name)
    found = _Found(lines={}, unmatched=[])
    if options.from_ is None:
        labels = before or _own_labels(cache, rows, name)
        source = LabelSource(kind=None, names=(), lines=(), has_splits=False, text=before.source if before else "")
    else:
        source = read_source(
            options.from_,
            dataset=options.dataset,
            kind=options.kind,  # type: ignore[arg-type] # one of its choices
            columns=options.columns,
            separator=options.separator,
        )
        found = _match(source, rows, path)
        needed = before is None and source.kind is None
        nothing = LabelSet(name=name, kind="classes", names=(), labels={})
        labels = _label_set(source, found, _own_labels(cache, rows, name) if needed else before or nothing)
    rule = _split_rule(options, source)
    lines += [source.how] if source.how else []
    if rule is not None:
        labels, told = _dealt(labels, rows, rule)
        lines += told
    written = write_label_set(path, labels)
    return _report(path, written, before, found, rows, lines)


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What `label_cache` did.

    Attributes:
        cache: the folder.
        name, number, kind, digest, source: of the set.
        is_new: whether a file was written; False where the set said the same already.
        names: of its classes, labels or target columns.
        num_lines: of the source.
        num_videos: of the cache.
        num_labelled: of these, that have a label in the set.
        unlabelled: ids of the first that have none.
        num_unmatched: lines that no video of the cache matches.
        unmatched: the first of these, as they are written.
        splits: videos of the cache by split, where the set has splits; empty where the cache's own are used.
        num_without_split: videos of the cache that are in no split of the set.
        lines: what else is to be said.
    """

    cache: str
    name: str
    number: int
    kind: str
    digest: str
    source: str
    is_new: bool
    names: tuple[str, ...]
    num_lines: int
    num_videos: int
    num_labelled: int
    unlabelled: tuple[str, ...]
    num_unmatched: int
    unmatched: tuple[str, ...]
    splits: Mapping[str, int]
    num_without_split: int
    lines: tuple[str, ...]


def describe_label_sets(cache: FeatureCache) -> tuple[LabelSetInfo, ...]:
    """Every label set; one that is damaged comes with its error."""
    ids = {row.id for row in cache.videos} if cache.label_sets else set()
    found = []
    for name in cache.label_sets:
        try:
            labels = cache.folder.label_set(name)
        except CacheError as error:
            found.append(LabelSetInfo(name=name, error=str(error)))
            continue
        found.append(
            LabelSetInfo(
                name=name,
                number=labels.number,
                kind=labels.kind,
                num_names=len(labels.names),
                num_labelled=sum(video_id in ids for video_id in labels.labels),
                splits=num_in_splits(split for key, split in (labels.splits or {}).items() if key in ids),
                digest=labels.digest,
                source=labels.source,
            )
        )
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class LabelSetInfo:
    """One label set of a cache.

    Attributes:
        name, number, kind, digest, source: as `LabelSet` has them.
        num_names: of classes, labels or target columns.
        num_labelled: videos of the cache that have a label in it.
        splits: videos of the cache by split; empty where the cache's own splits are used.
        error: why it cannot be read; the rest is empty then. Empty for one that can.
    """

    name: str
    number: int = 0
    kind: str = ""
    num_names: int = 0
    num_labelled: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""
    source: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The lines of a source by the id of the video that each is of, and those that no video matches."""

    lines: Mapping[str, Sequence[LabelLine]]
    unmatched: Sequence[LabelLine]


def _before(cache: Path, name: str) -> tuple[LabelSet | None, list[str]]:
    """The set that is replaced, and what there is to say of it; None where it is not there or cannot be read."""
    if name not in label_set_names(cache):
        return None, []
    try:
        return read_label_set(cache, name), []
    except CacheFormatError:
        return None, [f"the set {name!r} that was there is damaged; nothing of it was taken over"]


def _name_of(source: Path | None) -> str:
    """A label set's name where none is given: that of the file, without its suffix, or of the folder."""
    if source is None:
        return "splits"
    whole = source.resolve()
    return safe_name(whole.with_name(whole.stem) if whole.is_file() else whole)


def _first_rows(cache: CacheFolder) -> list[LedgerRow]:
    """A row of each video, in whatever view."""
    found: dict[str, LedgerRow] = {}
    for row in LedgerRows(open_catalog(cache).table):
        found.setdefault(row.id, row)
    return list(found.values())


def _own_labels(cache: CacheFolder, rows: Sequence[LedgerRow], name: str) -> LabelSet:
    """What the cache was extracted with; its splits are left to it."""
    with content_errors(cache.path):
        return LabelSet(
            name=name,
            kind="classes",
            names=cache.contents().class_names,
            labels={row.id: row.label for row in rows if row.label is not None},
            source="labels of the extraction",
        )


def _label_set(source: LabelSource, found: _Found, before: LabelSet) -> LabelSet:
    """The set that a source makes; what it does not say is as before."""
    labels: dict[str, Label] = {}
    splits: dict[str, str] = {}
    folds: dict[str, dict[str, str]] = defaultdict(dict)
    for video_id, lines in found.lines.items():
        known = [line.label for line in lines if line.label is not None]
        if known:
            several = [label for label in known if isinstance(label, frozenset)]
            labels[video_id] = frozenset().union(*several) if several else known[0]
        for line in lines:
            if line.split is not None:
                splits[video_id] = line.split
            for fold, split in line.folds.items():
                folds[fold][video_id] = split
    has_labels = source.kind is not None
    return LabelSet(
        name=before.name,
        kind=source.kind if source.kind is not None else before.kind,
        names=source.names if has_labels else before.names,
        labels=labels if has_labels else before.labels,
        splits=splits if source.has_splits else before.splits,
        folds=folds if folds or source.has_splits else before.folds,
        source=source.text if has_labels else f"{source.text}; {before.source}".removesuffix("; "),
    )


def _split_rule(options: LabelOptions, source: LabelSource) -> SplitRule | None:
    given = {
        "fractions": options.split_fractions,
        "group_by": options.group_by,
        "num_folds": options.split_folds,
        "seed": options.split_seed,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    if not asked:
        return None
    rule = SplitRule(**asked)  # type: ignore[arg-type]
    if source.has_splits:
        raise UsageError(f"--from {options.from_} has splits already; leave {rule} out")
    return rule


def _dealt(labels: LabelSet, rows: Sequence[LedgerRow], rule: SplitRule) -> tuple[LabelSet, list[str]]:
    """The set with every video of the cache dealt to splits, and what there is to say of that."""
    names = labels.names if labels.kind == "classes" else ()
    records = [
        VideoRecord(
            id=row.id,
            source=VideoSource(path=Path(name_of_text(row.source_path))),
            split="",
            label=label if isinstance(label := labels.labels.get(row.id), int) else None,
        )
        for row in rows
    ]
    digests = {row.id: row.source_digest for row in rows if row.source_digest is not None}
    dealt = deal(records, rule, class_names=names, digests=digests)
    folds: dict[str, dict[str, str]] = defaultdict(dict)
    for record in dealt:
        for fold, split in record.folds.items():
            folds[fold][record.id] = split
    made = LabelSet(
        name=labels.name,
        kind=labels.kind,
        names=labels.names,
        labels=labels.labels,
        splits={record.id: record.split for record in dealt},
        folds=folds or labels.folds,
        source=f"{labels.source.partition('; splits by ')[0]}; splits by {rule}",
    )
    return made, describe(dealt, rule, class_names=names)


def _match(source: LabelSource, rows: Sequence[LedgerRow], cache: Path) -> _Found:
    """Which video each line is of.

    Raises:
        DatasetError: a line fits several videos, two lines are of one video, or none is of any.
    """
    matcher = VideoMatcher(rows)
    digests = _digests(source.lines)
    lines: dict[str, list[LabelLine]] = {}
    unmatched = []
    for line, digest in zip(source.lines, digests, strict=True):
        video_id = matcher.find(line.video, digest=digest, place=line.place)
        if video_id is None:
            unmatched.append(line)
            continue
        others = lines.setdefault(video_id, [])
        if others and source.kind != "multilabel":
            both = f"{others[0].video!r} ({others[0].place}) and {line.video!r} ({line.place})"
            raise DatasetError(f"{both} are both the video {video_id!r} of {cache}; leave one of them out")
        others.append(line)
    if not lines:
        first, known = source.lines[0], ", ".join(repr(row.id) for row in rows[:_SHOWN]) or "none"
        raise DatasetError(
            f"none of the {len(source.lines)} videos of {source.text} is in {cache}: {first.video!r} ({first.place}) "
            f"and the others match no id, path or file name; videos of the cache: {known}"
        )
    return _Found(lines=lines, unmatched=unmatched)


def _digests(lines: Sequence[LabelLine]) -> list[str | None]:
    if not any(line.source for line in lines):
        return [None] * len(lines)

    def digest(line: LabelLine) -> str | None:
        try:
            return None if line.source is None else line.source.digest()
        except OSError:
            return None  # it is not there: its name tells

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(digest, lines))


def _report(
    path: Path,
    labels: LabelSet,
    before: LabelSet | None,
    found: _Found,
    rows: Sequence[LedgerRow],
    lines: Sequence[str],
) -> LabelReport:
    without = [row.id for row in rows if row.id not in labels.labels]
    splits = labels.splits
    in_splits = [] if splits is None else [splits[row.id] for row in rows if row.id in splits]
    num_lines = len(found.unmatched) + sum(map(len, found.lines.values()))
    empty = Counter(label for label in labels.labels.values() if isinstance(label, int))
    unused = [name for number, name in enumerate(labels.names) if labels.kind == "classes" and number not in empty]
    told = [f"{len(unused)} of {len(labels.names)} classes have no video: {', '.join(unused[:8])}"] if unused else []
    return LabelReport(
        cache=str(path),
        name=labels.name,
        number=labels.number,
        kind=labels.kind,
        digest=labels.digest,
        source=labels.source,
        is_new=before is None or before.number != labels.number,
        names=labels.names,
        num_lines=num_lines,
        num_videos=len(rows),
        num_labelled=len(rows) - len(without),
        unlabelled=tuple(without[:_SHOWN]),
        num_unmatched=len(found.unmatched),
        unmatched=tuple(line.video for line in found.unmatched[:_SHOWN]),
        splits=num_in_splits(in_splits),
        num_without_split=0 if splits is None else len(rows) - len(in_splits),
        lines=(*lines, *told),
    )

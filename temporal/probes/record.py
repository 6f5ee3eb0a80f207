"""`probe.json`: everything a probe found, for people, reports and paired tests. One file per configuration.

A result is decided by the options that decide numbers, the cache, its videos and labels, and the run. Their digests
stand in `probe.json`, and in the folder's name where no `--name` is given. So a result is found again when the same is
asked for, and never replaced by another one without `--force`.

    format_version, vfz     of the file and of the package
    settings                every option that decides numbers, by name
    digests                 cache (fingerprint), ledger, labels, run (or null), settings
    cache                   path, name, fingerprint, ledger_digest, encoder, recipe, encoder_request, precision, store,
                            num_bytes, layers, label_set (name, number, kind, digest; null for the labels of the
                            extraction, absent in results of before)
    features                kind (tokens | temporal), run, core, run_parameters, layers, parts, token_shapes,
                            clips (num_frames, stride, step_seconds, segments, views), pool, derived: path,
                            num_bytes and made of each
    class_names             K names
    report                  the figures, as `ProbeReport`
    videos                  ids, labels: of the reported split's present videos, V of each
    missing                 id, status, reason of its planned videos that nothing can be said of
    head                    kind, file, sha256 and sizes of the chosen head, of several seeds the first's; null where
                            its kind is not saved, absent in results of before
    runs                    one per seed:
        seed, num_train, num_fitted, num_held_out, num_parameters, seconds
        chosen              settings, held_out_top1, held_out_log_loss
        heads               the same of every setting tried, and eval_top1, which chose nothing
        best_head           index of the head that is best on the reported split: what others publish
        curves              train_loss, held_out_top1 per epoch of the chosen head; empty for probes that are solved
        top1, top5          of the V videos
        predicted, confidence, label_rank      V of each: class, its probability, and how many classes were thought
                            likelier than the true one

Of other tasks than `classify` the report is a `DenseReport`, and in a run `held_out_<headline>` and `eval_<headline>`
stand for `held_out_top1` and `eval_top1`, and `metrics` and `headline_of_videos` (V) for what follows `curves`.

Numbers that are not finite (the loss of a head that diverged) are null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vfz.pipeline.errors import RunError, UsageError
from vfz.pipeline.files import canonical_json, make_folder, sha256_hex, write_file_atomic
from vfz.temporal.kept import finite
from vfz.temporal.statistics import McNemar, PairedBootstrap, mcnemar, paired_bootstrap
from vfz.temporal.training.options import option_values

if TYPE_CHECKING:
    from vfz.temporal.probes.options import ProbeOptions
    from vfz.temporal.probes.sources import Sources

FORMAT_VERSION = 2
RECORD_FILE = "probe.json"
_NO_SETTINGS = frozenset({"cache", "temporal", "targets", "out", "name", "force", "device", "sweep", "layer"})


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What a probe found. Shares are of the reported split, which chose nothing unless said.

    Attributes:
        result: the folder with `probe.json`.
        features: what was probed: `tokens` or the temporal run.
        layers: of the encoder.
        pool: which frames were seen.
        task: `classify`.
        top1, top5: share of present videos whose class is right, or among the five likeliest; means over seeds.
        low, high: the 95% interval of `top1`.
        standard_error: of `top1`, binomial.
        deviation: of `top1` over seeds; None for one seed.
        num_seeds: fits, each with its own seed.
        num_eval_clips: present videos, which the shares are of.
        num_eval_missing: planned videos that are not in the cache, and not among them.
        num_eval_planned: both together.
        top1_of_planned: share of those, where a missing video counts as wrong.
        best_head_on_validation: the greatest top-1 over all settings on the reported split itself: what others publish.
        chance: accuracy of guessing evenly among the classes that some video of the cache has.
        majority: accuracy of always giving the class that most of the reported videos have; None in old results.
        interval: how `low` and `high` were made, `Wilson` or (in old results) `bootstrap`.
        shots: of the training split, as asked; None for all of it.
        num_train: training videos, held-out ones among them.
        chosen: settings chosen on the held-out part, of the first seed.
        num_parameters: of the probe.
        seconds: that it took.
        reused: whether this is a stored result.
    """

    result: str
    probe: str
    features: str
    layers: tuple[str, ...]
    pool: str
    task: str
    top1: float
    top5: float
    low: float
    high: float
    standard_error: float
    deviation: float | None
    num_seeds: int
    num_eval_clips: int
    num_eval_missing: int
    num_eval_planned: int
    top1_of_planned: float
    eval_split: str
    best_head_on_validation: float
    chance: float
    shots: str | None
    num_train: int
    chosen: dict[str, Any]
    num_parameters: int
    seconds: float
    majority: float | None = None
    interval: str = "bootstrap"
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Two probes on the videos that both have answered, first minus second.

    Attributes:
        num_videos: in both, with the same label.
        mcnemar: the exact test.
        bootstrap: the difference of accuracies with its interval.
    """

    num_videos: int
    mcnemar: McNemar
    bootstrap: PairedBootstrap


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """What is asked for, and where its result lies or will lie.

    Attributes:
        folder: with `probe.json`.
        settings: every option that decides numbers.
        digests: of the settings and of everything else that decides them.
        force: replace what is there.
    """

    folder: Path
    settings: dict[str, Any]
    digests: dict[str, str | None]
    force: bool

    @classmethod
    def of(cls, options: ProbeOptions, sources: Sources, *, pool: str, kind: str) -> StoredResult:
        """Where the result of some options lies.

        Args:
            options: of one configuration.
            sources: what they were resolved to.
            pool: the frames that are seen.
            kind: of probe, for the folder's name.
        """
        settings = option_values(options, without=_NO_SETTINGS) | {
            "layers": list(sources.layers),
            "parts": sources.parts,
            "pool": pool,
            "clip_frames": sources.rule.num_frames,
            "clip_stride": sources.rule.stride,
            "clip_seconds": sources.rule.step_seconds,
            "eval_split": sources.eval_split,
        }
        digests = {
            "settings": sha256_hex(canonical_json(settings)),
            "cache": sources.cache.fingerprint,
            "ledger": sources.cache.ledger_digest,
            "labels": sources.labels_digest(),
            "run": sources.run_digest,
        }
        stem = options.temporal.resolve().name if options.temporal else sources.cache.path.resolve().name
        name = options.name or f"{stem}-{kind}-probe-{sha256_hex(canonical_json(digests))[:8]}"
        return cls(folder=options.out / name, settings=settings, digests=digests, force=options.force)

    def record(self) -> dict[str, Any] | None:
        """The record that is there; None where there is none, or it is to be replaced.

        Raises:
            RunError: when that of something else is there, or it is damaged.
        """
        if self.force or not (self.folder / RECORD_FILE).exists():
            return None
        record = read_record(self.folder)
        if record["digests"] == self.digests:
            return record
        old, new = record["settings"], self.settings
        differing = [
            f"{key} (there {old.get(key)}, now {new.get(key)})" for key in new | old if old.get(key) != new.get(key)
        ]
        differing += [
            f"the {key}"
            for key in self.digests
            if key != "settings" and record["digests"].get(key) != self.digests[key]
        ]
        raise RunError(
            f"{self.folder} holds another result; these differ: {', '.join(differing)}: choose another --name, or "
            "replace it with --force"
        )

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the record."""
        write_record(self.folder, {"settings": self.settings, "digests": self.digests, **content})


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Replace a folder's `probe.json`, making the folder where it is not there."""
    make_folder(folder)
    whole = {"format_version": FORMAT_VERSION} | finite(record)
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file_atomic(folder / RECORD_FILE, text.encode("utf-8", "backslashreplace"))


def read_record(folder: Path) -> dict[str, Any]:
    """A folder's `probe.json`.

    Raises:
        UsageError: when the folder has none. RunError: when it is damaged or of another version.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"{folder} is no result of vfz probe: it has no readable {RECORD_FILE}") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); probe again with --force") from None
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} is not of format version {FORMAT_VERSION}; probe again with --force")
    return record


def report_of(record: Mapping[str, Any], *, folder: Path, reused: bool) -> ProbeReport:
    """The figures of a stored record."""
    values = dict(record["report"]) | {"result": str(folder), "reused": reused}
    return ProbeReport(**(values | {"layers": tuple(values["layers"])}))


def compare_records(first: Mapping[str, Any], second: Mapping[str, Any]) -> PairedTest:
    """Paired tests of two results, over the videos that both have; of several seeds the first.

    Raises:
        UsageError: when they have no video in common.
    """
    outcomes = [_right_by_video(record) for record in (first, second)]
    common = [key for key in outcomes[0] if key in outcomes[1]]
    if not common:
        raise UsageError("these probes have no video with the same label in common; compare probes of one dataset")
    first_V, second_V = (_in_order(one, common) for one in outcomes)
    return PairedTest(
        num_videos=len(common),
        mcnemar=mcnemar(first_V, second_V),
        bootstrap=paired_bootstrap(first_V, second_V),
    )


def _right_by_video(record: Mapping[str, Any]) -> dict[tuple[str, str], bool]:
    """By video and name of its class, whether it is right."""
    names, videos = record["class_names"], record["videos"]
    ranks = record["runs"][0]["label_rank"]
    return {
        (id_, names[label]): rank == 0 for id_, label, rank in zip(videos["ids"], videos["labels"], ranks, strict=True)
    }


def _in_order(outcomes: Mapping[tuple[str, str], bool], keys: list[tuple[str, str]]) -> NDArray[np.bool_]:
    return np.array([outcomes[key] for key in keys], dtype=np.bool_)

"""A result folder: found again when the same is asked for, and never replaced by another result without `--force`.

A result is decided by the options that decide numbers, the cache, its videos and labels, and the run. Their digests
stand in `probe.json`, and in the folder's name where no `--name` is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.errors import RunError
from vfz.pipeline.files import canonical_json, sha256_hex
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import RECORD_FILE, read_record, write_record
from vfz.temporal.probes.sources import Sources
from vfz.temporal.training.options import option_values

_NO_SETTINGS = frozenset({"cache", "temporal", "targets", "out", "name", "force", "device", "sweep", "layer"})


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
        differing = [f"{key} (there {old.get(key)}, now {new[key]})" for key in new if old.get(key) != new[key]]
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

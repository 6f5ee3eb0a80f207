"""A workflow: one TOML file with everything from videos to a published figure.

    [extract]             one table: which videos, which encoder
    [[train-temporal]]    one or more: the temporal modules trained on that cache
    [[probe]]             one or more: probes of the tokens, or of a module (`temporal = "<name of a run above>"`)
    [paper]               what was published of the result: `metric`, `value`, `source`

Each table is what `--config` reads for its command, and a file with single tables serves both. Stages are run in this
order. What a stage leaves out and another decides is filled in: the cache is the one extracted, a run's name is the
workflow's and the core's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfz.pipeline.config import Options, option, read_tables
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.temporal.probes.options import ProbeOptions, TrainOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What `vfz run` does: the stages of a workflow that are not done yet."""

    workflow: Path = option(help="A TOML file with the tables [extract], [[train-temporal]] and [[probe]].")
    dry_run: bool = option(default=False, help="Only show which stages are done, to go on with, and to do.")
    again: bool = option(default=False, help="Look for new videos although the cache is whole, and fit probes again.")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper reports of the result that a workflow makes.

    Attributes:
        metric: as the run's own result calls it, e.g. `top1`.
        value: in the metric's own unit; shares between 0 and 1.
        source: where it stands.
    """

    metric: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """The stages of a workflow, in the order they are run.

    Attributes:
        path: its file.
        extract: the extraction.
        trainings: the temporal modules, each with a name.
        probes: the probes; `temporal` is a run's folder.
        published: None where the file does not say.
    """

    path: Path
    extract: ExtractOptions
    trainings: tuple[TrainOptions, ...]
    probes: tuple[ProbeOptions, ...]
    published: Published | None

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def read_workflow(path: Path) -> Workflow:
    """A workflow's stages, every option checked before anything is run.

    Raises:
        UsageError: when the file cannot be read, has no [extract], has a wrong option, or two runs of one name.
    """
    document = read_tables(path)
    where = str(path)
    extractions = _tables(document, "extract")
    if len(extractions) != 1:
        raise UsageError(f"{path} has {len(extractions)} tables [extract]; a workflow begins with exactly one")
    if unused := sorted(document.keys() - {"extract", "train-temporal", "probe", "paper"}):
        raise UsageError(f"{path} has the table [{unused[0]}], which is no stage of a workflow; remove it")
    for stage in ("train-temporal", "probe"):
        if any("cache" in values for values in _tables(document, stage)):
            raise UsageError(
                f"{path}: a cache is named in [{stage}]; leave it out, the workflow uses the one it extracts"
            )
    extract = ExtractOptions.from_mapping(extractions[0], where=where)
    trainings = tuple(
        _named(TrainOptions.from_mapping(values, where=where), path.stem)
        for values in _tables(document, "train-temporal")
    )
    folders = {_folder(training): training for training in trainings}
    if len(folders) < len(trainings):
        raise UsageError(f"{path} trains two runs into one folder; give each [[train-temporal]] a name of its own")
    probes = tuple(
        _resolved(ProbeOptions.from_mapping(values, where=where), trainings) for values in _tables(document, "probe")
    )
    return Workflow(
        path=path,
        extract=extract,
        trainings=trainings,
        probes=probes,
        published=_published(document.get("paper"), path),
    )


def _tables(document: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    found = document.get(name, [])
    return found if isinstance(found, list) else [found]


def _named(training: TrainOptions, workflow: str) -> TrainOptions:
    if training.name is not None:
        return training
    return dataclasses.replace(training, name=f"{workflow}-{training.core}-seed{training.seed}")


def _folder(training: TrainOptions) -> Path:
    assert training.name is not None  # noqa: S101 - `_named` saw to it
    return training.out / training.name


def _resolved(probe: ProbeOptions, trainings: Sequence[TrainOptions]) -> ProbeOptions:
    """The probe with a run's bare name replaced by its folder."""
    if probe.temporal is None or probe.temporal.name != str(probe.temporal):
        return probe
    for training in trainings:
        if training.name == str(probe.temporal):
            return dataclasses.replace(probe, temporal=_folder(training))
    return probe


def _published(values: Any, path: Path) -> Published | None:
    if values is None:
        return None
    fields: dict[str, type | tuple[type, ...]] = {"metric": str, "value": (int, float), "source": str}
    if not isinstance(values, dict):
        raise UsageError(f"{path} has several tables [[paper]]; a workflow aims at one figure")
    if unknown := sorted(values.keys() - fields.keys()):
        raise UnknownNameError(f"key in [paper] of {path}", unknown[0], fields)
    for name, kind in fields.items():
        if not isinstance(values.get(name), kind) or isinstance(values.get(name), bool):
            raise UsageError(f"{path}: [paper] {name} is {values.get(name)!r}; it needs metric, value and source")
    return Published(metric=values["metric"], value=float(values["value"]), source=values["source"])

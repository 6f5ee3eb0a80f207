"""A workflow: one TOML file with everything from videos to published figures.

    [extract]                    one table: which videos, which encoder
    [defaults.train-temporal]    what all [[train-temporal]] share; what one of them says itself wins
    [[train-temporal]]           one or more: the temporal modules trained on that cache
    [defaults.probe]             what all [[probe]] share
    [[probe]]                    one or more: probes of the tokens, or of a module (`temporal = "<a run's name>"`)
    [paper]                      what was published of the result: `metric`, `value`, `source`

Where several trainings each aim at a figure, each has its own `paper = { metric = …, value = …, source = … }`.

Each table is what `--config` reads for its command, and a file with single tables serves both. Stages are run in this
order. What a stage leaves out and another decides is filled in: the cache is the one extracted, a run's name is the
workflow's and the core's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vfz.pipeline.config import Options, option, read_tables, tables_of
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.training.options import TrainOptions

OptionsType = TypeVar("OptionsType", bound=Options)
CheckedType = TypeVar("CheckedType")


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What `vfz run` does: the stages of a workflow that are not done yet."""

    workflow: Path = option(help="A TOML file with the tables [extract], [[train-temporal]] and [[probe]].")
    only: tuple[str, ...] | None = option(
        None, help="Only the trainings of this name or core, and the probes of them; default: all stages."
    )
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
        published: of the whole file; None where it does not say.
        figures: what was published of single trainings, by run folder.
    """

    path: Path
    extract: ExtractOptions
    trainings: tuple[TrainOptions, ...]
    probes: tuple[ProbeOptions, ...]
    published: Published | None
    figures: Mapping[Path, Published]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def only(self, names: Sequence[str]) -> Workflow:
        """The extraction, the trainings that have one of `names` as name or core, and the probes of those.

        Raises:
            UnknownNameError: when no training has a name.
        """
        known = {name for training in self.trainings for name in (str(training.name), training.core)}
        for name in names:
            if name not in known:
                raise UnknownNameError(f"training in {self.path}", name, known)
        trainings = tuple(one for one in self.trainings if {one.name, one.core} & set(names))
        folders = {run_folder(training) for training in trainings}
        probes = tuple(probe for probe in self.probes if probe.temporal in folders)
        return dataclasses.replace(self, trainings=trainings, probes=probes)


def run_folder(training: TrainOptions) -> Path:
    """Where a workflow's training leaves its run."""
    return training.out / str(training.name)


def read_workflow(path: Path) -> Workflow:
    """A workflow's stages, every option checked before anything is run.

    Raises:
        UsageError: when the file cannot be read, has no [extract], has a wrong option, or two runs of one name.
    """
    document = read_tables(path)
    tables = {command: tables_of(document, command) for command in ("extract", "train-temporal", "probe")}
    if len(tables["extract"]) != 1:
        raise UsageError(f"{path} has {len(tables['extract'])} tables [extract]; a workflow begins with exactly one")
    if unused := sorted(document.keys() - tables.keys() - {"defaults", "paper"}):
        raise UsageError(f"{path} has the table [{unused[0]}], which is no stage of a workflow; remove it")
    for stage in ("train-temporal", "probe"):
        if any("cache" in values for values in tables[stage]):
            raise UsageError(
                f"{path}: a cache is named in [{stage}]; leave it out, the workflow uses the one it extracts"
            )
    papers = [values.pop("paper", None) for values in tables["train-temporal"]]
    for command, kind in (("train-temporal", TrainOptions), ("probe", ProbeOptions)):
        shared = document.get("defaults", {}).get(command, {})
        _checked(kind.check_some, shared, f"[defaults.{command}]", path)

    def stages(command: str, kind: type[OptionsType]) -> list[OptionsType]:
        return [
            _checked(kind.from_mapping, values, _place(document, command, number), path)
            for number, values in enumerate(tables[command])
        ]

    (extract,) = stages("extract", ExtractOptions)
    trainings = tuple(_named(training, path.stem) for training in stages("train-temporal", TrainOptions))
    folders = [run_folder(training) for training in trainings]
    if len(set(folders)) < len(folders):
        raise UsageError(f"{path} trains two runs into one folder; give each [[train-temporal]] a name of its own")
    published = _published(document["paper"], "[paper]", path) if "paper" in document else None
    figures = {
        folder: _published(paper, f"paper of {_place(document, 'train-temporal', number)}", path)
        for number, (folder, paper) in enumerate(zip(folders, papers, strict=True))
        if paper is not None
    }
    if published and figures:
        raise UsageError(f"{path} has [paper] and also a paper of single trainings; leave one of them out")
    return Workflow(
        path=path,
        extract=extract,
        trainings=trainings,
        probes=tuple(_resolved(probe, trainings) for probe in stages("probe", ProbeOptions)),
        published=published,
        figures=figures,
    )


def _checked(check: Callable[..., CheckedType], values: Mapping[str, Any], table: str, path: Path) -> CheckedType:
    """What `check` makes of a table; its errors say in which table of which file they are."""
    try:
        return check(values, where=f"{table} of {path}")
    except UsageError as error:
        if str(path) in str(error):  # of a key: it says where
            raise
        raise UsageError(f"{path}: {table}: {error}") from None


def _place(document: Mapping[str, Any], command: str, number: int) -> str:
    """A table as messages call it; `number` counts from 0."""
    return f"[[{command}]] number {number + 1}" if isinstance(document[command], list) else f"[{command}]"


def _named(training: TrainOptions, workflow: str) -> TrainOptions:
    if training.name is not None:
        return training
    return dataclasses.replace(training, name=f"{workflow}-{training.core}-seed{training.seed}")


def _resolved(probe: ProbeOptions, trainings: Sequence[TrainOptions]) -> ProbeOptions:
    """The probe with a run's bare name replaced by its folder."""
    if probe.temporal is None or probe.temporal.name != str(probe.temporal):
        return probe
    for training in trainings:
        if training.name == str(probe.temporal):
            return dataclasses.replace(probe, temporal=run_folder(training))
    return probe


def _published(values: Any, table: str, path: Path) -> Published:
    fields: dict[str, type | tuple[type, ...]] = {"metric": str, "value": (int, float), "source": str}
    if isinstance(values, list):
        raise UsageError(f"{path}: {table} is there several times; each [[train-temporal]] may have one of its own")
    if not isinstance(values, dict):
        raise UsageError(f"{path}: {table} is {values!r}; it needs metric, value and source")
    if unknown := sorted(values.keys() - fields.keys()):
        raise UnknownNameError(f"key in {table} of {path}", unknown[0], fields)
    for name, kind in fields.items():
        if not isinstance(values.get(name), kind) or isinstance(values.get(name), bool):
            raise UsageError(f"{path}: {table} {name} is {values.get(name)!r}; it needs metric, value and source")
    return Published(metric=values["metric"], value=float(values["value"]), source=values["source"])

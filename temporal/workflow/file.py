"""A workflow: one TOML file with everything from videos to published figures.

    [extract]                    one table: which videos, which encoder
    [[convert]]                  caches of a part, or at another precision, made of the one extracted
    [[train-temporal]]           the temporal modules trained on a cache
    [[evaluate]]                 modules on other splits (`run = "<a training's name>"`)
    [[probe]]                    probes of the tokens, or of a module (`temporal = "<a training's name>"`)
    [compare]                    trainings and probes side by side; without `runs` all of the workflow
    [[predict]]                  answers about videos, of a training or probe (`run` or `probe = "<its name>"`)
    [defaults.train-temporal]    what all [[train-temporal]] share; what one of them says itself wins. So for the others
    [paper]                      what was published of the result: `metric`, `value`, `source`

Where several trainings each aim at a figure, each has its own `paper = { metric = …, value = …, source = … }`.

Each table is what `--config` reads for its command, and a file with single tables serves both. Stages are run in this
order. What a stage leaves out and another decides is filled in: the cache is the one extracted, or the conversion that
`cache = "<its name>"` names; a run's name is the workflow's and the core's.

Messages about a stage say which table of which file it is, and name options by their keys there.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vfz.pipeline.config import Options, read_tables, tables_of
from vfz.pipeline.errors import UnknownNameError, UsageError, VfzError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.probes.options import CompareRunsOptions, ProbeOptions
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.workflow.options import RunOptions

CheckedType = TypeVar("CheckedType")

STAGES: Mapping[str, type[Options]] = {
    "extract": ExtractOptions,
    "convert": ConvertOptions,
    "train-temporal": TrainOptions,
    "evaluate": EvaluateOptions,
    "probe": ProbeOptions,
    "compare": CompareRunsOptions,
    "predict": PredictOptions,
}
"""In the order in which they are run."""
_ON_A_CACHE = frozenset({"train-temporal", "evaluate", "probe", "predict"})
EVERY_RUN = Path("*")
"""In the place of the runs of a comparison: all trainings and probes of the workflow."""
EXTRACTED = "the cache that [extract] makes"
"""In the place of a cache that is not there yet."""
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])")
_SAID_OTHERWISE = {
    "the same command with --resume goes on": "the same vfz run goes on",
    "--force probes again": "vfz run --again probes again",
    "continue it with vfz train-temporal --resume": "the same vfz run goes on",
}
"""What commands advise, and what it is for who calls `vfz run`."""


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
class Stage:
    """One stage of a workflow.

    Attributes:
        file: of the workflow.
        command: one of `STAGES`.
        place: its table, as messages call it.
        keys: of that table, as they are spelt there, with those of the defaults.
        options: of the command.
        title: the command and what it makes; no other stage has the same.
        cache: name of the conversion that it works on; None: the cache that is extracted.
    """

    file: Path
    command: str
    place: str
    keys: tuple[str, ...]
    options: Any
    title: str
    cache: str | None = None

    def told(self, message: str) -> str:
        """What a command says, for who reads the workflow: the table in front, keys instead of flags."""
        text = self.in_keys(message)
        return text if str(self.file) in text else f"{self.file}: {self.place}: {text}"

    def in_keys(self, message: str) -> str:
        """What a command says, with keys instead of flags."""
        for said, otherwise in _SAID_OTHERWISE.items():
            message = message.replace(said, otherwise)
        return in_keys(message, STAGES[self.command], self.keys)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Errors in the block say what `told` makes of them."""
        try:
            yield
        except VfzError as error:
            error.args = (self.told(str(error)), *error.args[1:])
            raise


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """The stages of a workflow, in the order they are run.

    Attributes:
        path: its file.
        stages: the extraction first; each training has a name, and each `temporal` or `run` that names one is its
            folder.
        published: of the whole file; None where it does not say.
        figures: what was published of single trainings, by run folder.
    """

    path: Path
    stages: tuple[Stage, ...]
    published: Published | None
    figures: Mapping[Path, Published]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def extract(self) -> ExtractOptions:
        """The extraction."""
        options: ExtractOptions = self.stages[0].options
        return options

    @property
    def trainings(self) -> tuple[TrainOptions, ...]:
        """The temporal modules."""
        return tuple(stage.options for stage in self.of("train-temporal"))

    @property
    def probes(self) -> tuple[ProbeOptions, ...]:
        """The probes."""
        return tuple(stage.options for stage in self.of("probe"))

    def of(self, command: str) -> tuple[Stage, ...]:
        """The stages of a command."""
        return tuple(stage for stage in self.stages if stage.command == command)

    def only(self, names: Sequence[str]) -> Workflow:
        """The extraction, the trainings that have one of `names` as name or core, and what is made of those.

        Raises:
            UnknownNameError: when no training has a name.
        """
        known = {name for training in self.trainings for name in (str(training.name), training.core)}
        for name in names:
            if name not in known:
                raise UnknownNameError(f"training in {self.path}", name, known)
        chosen = [stage for stage in self.of("train-temporal") if {stage.options.name, stage.options.core} & set(names)]
        folders = {run_folder(stage.options) for stage in chosen}
        chosen += [stage for stage in self.stages if run_of(stage) in folders and stage not in chosen]
        probes = {probe_folder(stage.options) for stage in chosen if stage.command == "probe"} - {None}
        chosen += [stage for stage in self.of("predict") if stage.options.probe in probes]
        caches = {stage.cache for stage in chosen}
        kept = [stage for stage in self.of("convert") if stage.options.name in caches]
        stages = tuple(stage for stage in self.stages if stage.command == "extract" or stage in [*chosen, *kept])
        return dataclasses.replace(self, stages=stages)


def run_folder(training: TrainOptions) -> Path:
    """Where a workflow's training leaves its run."""
    return training.out / str(training.name)


def probe_folder(probe: ProbeOptions) -> Path | None:
    """Where a workflow's probe leaves its result; None where it has no name."""
    return None if probe.name is None else probe.out / probe.name


def run_of(stage: Stage) -> Path | None:
    """The run folder that a stage asks about."""
    found: Path | None = getattr(stage.options, {"probe": "temporal"}.get(stage.command, "run"), None)
    return found


def chosen_stages(options: RunOptions) -> Workflow:
    """The workflow, or the stages of it that `--only` names.

    Raises:
        UsageError: as `read_workflow`. UnknownNameError: no training is called so.
    """
    workflow = read_workflow(options.workflow)
    return workflow.only(options.only) if options.only else workflow


def read_workflow(path: Path) -> Workflow:
    """A workflow's stages, every option checked on its own.

    Raises:
        UsageError: when the file cannot be read, has no [extract], has a wrong option, two runs of one name, or a cache
        that is no conversion.
    """
    document = read_tables(path)
    tables = {command: tables_of(document, command) for command in STAGES}
    if len(tables["extract"]) != 1:
        raise UsageError(f"{path} has {len(tables['extract'])} tables [extract]; a workflow begins with exactly one")
    if unused := sorted(document.keys() - tables.keys() - {"defaults", "paper"}):
        other = "; write [convert]" if unused[0] == "cache" else ""
        raise UsageError(f"{path} has the table [{unused[0]}], which is no stage of a workflow; remove it{other}")
    papers = [values.pop("paper", None) for values in tables["train-temporal"]]
    for command in STAGES:
        if shared := document.get("defaults", {}).get(command):
            kind = STAGES[command]
            own = {key: value for key, value in shared.items() if key != "cache"}
            _checked(kind.check_some, own, kind, f"[defaults.{command}]", path)
    stages = [
        _stage(path, command, _place(document, command, number), values, tables)
        for command, several in tables.items()
        for number, values in enumerate(several)
    ]
    trainings = [stage.options for stage in stages if stage.command == "train-temporal"]
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
        stages=tuple(_with_titles([_resolved(stage, stages) for stage in stages])),
        published=published,
        figures=figures,
    )


def in_keys(message: str, kind: type[Options], keys: Sequence[str] = ()) -> str:
    """A message with the keys of a table instead of the flags of its command, spelt as in the table."""
    names = {field.name for field in kind.option_fields()}
    spelt = {key.replace("-", "_"): key for key in keys}

    def key(match: re.Match[str]) -> str:
        name = match[1].replace("-", "_")
        return f"`{spelt.get(name, match[1])}`" if name in names else match[0]

    return _FLAG.sub(key, message)


def _checked(
    check: Callable[..., CheckedType], values: Mapping[str, Any], kind: type[Options], table: str, path: Path
) -> CheckedType:
    """What `check` makes of a table; its errors say in which table of which file they are."""
    try:
        return check(values, where=f"{table} of {path}")
    except UsageError as error:
        if str(path) in str(error):  # of a key: it says where
            raise
        raise UsageError(f"{path}: {table}: {in_keys(str(error), kind, tuple(values))}") from None


def _place(document: Mapping[str, Any], command: str, number: int) -> str:
    """A table as messages call it; `number` counts from 0."""
    return f"[[{command}]] number {number + 1}" if isinstance(document[command], list) else f"[{command}]"


def _stage(
    path: Path, command: str, place: str, values: dict[str, Any], tables: Mapping[str, list[dict[str, Any]]]
) -> Stage:
    values, keys = dict(values), tuple(values)
    cache = _conversion(path, command, place, values, tables)
    values = _filled_in(path, command, place, tables) | values
    if command == "predict" and "videos" not in values:
        values["cache"] = EXTRACTED
    if "dry-run" in values or "dry_run" in values:
        raise UsageError(f"{path}: {place}: dry-run is for a whole workflow; leave it out, and give vfz run --dry-run")
    options = _checked(STAGES[command].from_mapping, values, STAGES[command], place, path)
    if isinstance(options, TrainOptions) and options.name is None:
        options = dataclasses.replace(options, name=f"{path.stem}-{options.core}-seed{options.seed}")
    return Stage(file=path, command=command, place=place, keys=keys, options=options, title=command, cache=cache)


def _filled_in(path: Path, command: str, place: str, tables: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What a table of a command may leave out in a workflow, and nowhere else."""
    number = "-" + re.sub(r"\D", "", place) if len(tables[command]) > 1 else ""
    if command == "convert":
        return {"out": tables["extract"][0].get("out", "caches")}
    if command == "compare":
        return {"runs": str(EVERY_RUN), "name": f"{path.stem}-comparison{number}"}
    if command == "predict":
        return {"out": f"runs/{path.stem}-predictions{number}.csv"}
    return {}


def _conversion(
    path: Path, command: str, place: str, values: dict[str, Any], tables: Mapping[str, list[dict[str, Any]]]
) -> str | None:
    """The name of the conversion that a table names as its cache, which is taken out of it."""
    if command == "extract" or "cache" not in values:
        return None
    name = values.pop("cache")
    names = [str(one["name"]) for one in tables["convert"] if "name" in one]
    if command in _ON_A_CACHE and name in names:
        return str(name)
    other = f", or name one of [[convert]] ({', '.join(names)})" if names and command in _ON_A_CACHE else ""
    raise UsageError(f"{path}: a cache is named in {place}; leave it out, the workflow uses the one it extracts{other}")


def _resolved(stage: Stage, stages: Sequence[Stage]) -> Stage:
    """The stage with the bare names of runs and probes replaced by their folders."""
    folders: dict[str, dict[str, Path | None]] = {
        "run": {str(one.options.name): run_folder(one.options) for one in stages if one.command == "train-temporal"},
        "probe": {str(one.options.name): probe_folder(one.options) for one in stages if one.command == "probe"},
    }
    kinds = {"probe": {"temporal": "run"}, "evaluate": {"run": "run"}, "predict": {"run": "run", "probe": "probe"}}
    changes: dict[str, Any] = {}
    if stage.command == "compare":
        named = {name: folder for several in folders.values() for name, folder in several.items() if folder}
        changes["runs"] = tuple(named.get(str(given), given) for given in stage.options.runs)
    for name, kind in kinds.get(stage.command, {}).items():
        given = getattr(stage.options, name)
        if given is not None and given.name == str(given) and (folder := folders[kind].get(given.name)):
            changes[name] = folder
    return dataclasses.replace(stage, options=dataclasses.replace(stage.options, **changes)) if changes else stage


def _with_titles(stages: Sequence[Stage]) -> Iterator[Stage]:
    titles = [_title(stage) for stage in stages]
    several, seen = Counter(titles), Counter[str]()
    for stage, title in zip(stages, titles, strict=True):
        seen[title] += 1
        number = f" ({seen[title]})" if several[title] > 1 else ""
        yield dataclasses.replace(stage, title=f"{title}{number}")


def _title(stage: Stage) -> str:
    options = stage.options
    if stage.command == "extract":
        return f"extract {options.dataset}"
    if stage.command == "convert":
        return f"convert to {options.name or options.precision or 'a part'}"
    if stage.command == "train-temporal":
        return f"train-temporal {options.name}"
    if stage.command == "evaluate":
        return f"evaluate {options.run.name}{f' on {options.split}' if options.split else ''}"
    if stage.command == "compare":
        return f"compare {options.name}"
    if stage.command == "predict":
        return f"predict by {(options.run or options.probe).name}"
    of = options.temporal.name if options.temporal else "tokens"
    return f"probe {options.name or f'{options.probe} of {of}'}"


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

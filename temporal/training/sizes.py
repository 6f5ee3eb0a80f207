"""How large a model is: named sets of sizes, which one is chosen, and what would make a run smaller.

`tiny` is what the tables of the pages and the demo are made with, `paper` what the paper has: its core is as wide as
the encoder, which for ViT-L makes 84 million weights. Few clips do not teach so many. So where nothing is said the
clips decide: `tiny` below 1,000 training clips, `paper` from 20 for each channel of the encoder on (20,480 for 1,024
channels), `small` between. The machine is not asked: the same command gives the same model everywhere.

A run that names one of its sizes itself has the paper's others, as before there were names. The sizes themselves are
what is recorded, and a run that is continued keeps its own.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import counted
from vfz.temporal.cores import CORES
from vfz.temporal.layers import check_heads
from vfz.temporal.readouts import READOUTS
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.options import TrainOptions

FEW_CLIPS = 1_000
CLIPS_A_CHANNEL = 20
FEW_FRAMES = 8


@dataclass(frozen=True, kw_only=True)
class Size:
    """Defaults of the options of the same names; None: the encoder's width, or the paper's of the task."""

    core_dim: int | None = None
    num_layers: int = 4
    num_heads: int | None = None
    readout_dim: int | None = None
    readout_heads: int | None = None
    readout_hidden: int | None = None


SIZES = {
    "tiny": Size(core_dim=64, num_layers=2, num_heads=4, readout_dim=64, readout_heads=4, readout_hidden=64),
    "small": Size(core_dim=256, num_layers=3, num_heads=8, readout_dim=256, readout_heads=8, readout_hidden=256),
    "paper": Size(),
}
_NAMES = tuple(field.name for field in dataclasses.fields(Size))
_READOUT = {"readout_dim": "readout_dim", "readout_heads": "num_heads", "readout_hidden": "mlp_hidden"}
"""Which size of a readout an option is."""


@dataclass(frozen=True, kw_only=True)
class Sized:
    """Options whose sizes are all decided.

    Attributes:
        options: as given, but for the sizes.
        size: the name of the set that decided those that were not given.
        given: the sizes that were.
        note: why that set, in a line, where nobody asked for it.
    """

    options: TrainOptions
    size: str
    given: frozenset[str] = frozenset()
    note: str | None = None


def sized(options: TrainOptions, *, encoder_dim: int, num_clips: int) -> Sized:
    """The options with every size decided.

    Args:
        options: as given; a size that is given stays.
        encoder_dim: D, channels of the encoder.
        num_clips: videos to train on.
    """
    given = _given(options)
    if options.size or given:
        size = options.size or "paper"
        return Sized(options=_filled(options, size, encoder_dim), size=size, given=given)
    size = chosen_size(encoder_dim=encoder_dim, num_clips=num_clips)
    other = "--size tiny is quicker" if size == "paper" else "--size paper is the paper's"
    note = f"size {size}: chosen for {counted(num_clips, 'clip')} of {encoder_dim:,} channels; {other}"
    return Sized(options=_filled(options, size, encoder_dim), size=size, note=note)


def chosen_size(*, encoder_dim: int, num_clips: int) -> str:
    """The name of the set for so many training clips of an encoder of so many channels."""
    if num_clips < FEW_CLIPS:
        return "tiny"
    return "paper" if num_clips >= CLIPS_A_CHANNEL * encoder_dim else "small"


def sized_as(options: TrainOptions, record: Mapping[str, Any]) -> Sized:
    """The options with the sizes of a run, where they do not name others.

    Args:
        options: as given.
        record: the values of the run's `run.json`; a run from before sizes had names has the paper's.
    """
    given = _given(options)
    if options.size:
        encoder_dim = record["model"]["encoder_dim"]
        return Sized(options=_filled(options, options.size, encoder_dim), size=options.size, given=given)
    then = {name: record["options"].get(name) for name in _NAMES if name not in given}
    return Sized(options=dataclasses.replace(options, **then), size=str(record.get("size", "paper")), given=given)


def check_sizes(options: TrainOptions, *, encoder_dim: int) -> None:
    """Refuse attention heads that do not divide what they attend in; core and readout would not say whose they are.

    Raises:
        UsageError: names the option.
    """
    if options.num_heads and "num_heads" in CORES[options.core].sizes:
        _check_heads("num-heads", options.num_heads, options.core_dim or encoder_dim)
    if options.readout_heads and (width := options.readout_dim or readout_default(options.task, "readout_dim")):
        _check_heads("readout-heads", options.readout_heads, width)


def readout_heads(options: TrainOptions) -> int | None:
    """Heads of the readout: those given, else the paper's, or the most below that divide its width."""
    default = readout_default(options.task, "num_heads")
    if options.readout_heads or not (options.readout_dim and default and options.readout_dim % default):
        return options.readout_heads
    return _heads(default, options.readout_dim)


def readout_default(task: str, name: str) -> int | None:
    """The paper's size of a task's readout; None where the readout has no such size."""
    parameter = inspect.signature(READOUTS[task]).parameters.get(name)
    return None if parameter is None or not isinstance(parameter.default, int) else parameter.default


def smaller(found: Sized, *, encoder_dim: int) -> Iterator[tuple[str, str]]:
    """What would make a run smaller: options as they are typed, each with what it does; the most telling first.

    Args:
        found: the run's options and size.
        encoder_dim: D, channels of the encoder.
    """
    options, tiny = found.options, SIZES["tiny"]
    width, layers = options.core_dim or encoder_dim, options.num_layers or SIZES["paper"].num_layers
    least = tiny.core_dim or 0
    if not found.given:
        for name in list(SIZES)[: list(SIZES).index(found.size)]:
            yield f"--size {name}", f"{SIZES[name].num_layers} layers of {SIZES[name].core_dim} channels"
    if width > least:
        yield f"--core-dim {max(least, width // 2 // 16 * 16)}", "half the width: about a quarter of the core's weights"
    if layers > 1 and "num_layers" in CORES[options.core].sizes:
        yield f"--num-layers {layers // 2}", f"instead of {layers}: that part of the core's time and memory"
    if options.clip_frames >= FEW_FRAMES:
        yield f"--clip-frames {options.clip_frames // 2}", "half of the frames: about half of time and memory"
    if (parts := _more_parts(options)) is not None:
        yield f"--accumulate {parts}", "a step in more parts: less memory, the same step"
    if not options.checkpointing and CORES[options.core].sizes:
        yield "--checkpointing", "less memory, a third more time, the same numbers"
    if not options.token_dropout and not TASKS[options.task].asks_about_places and options.parts != "prefix":
        yield "--token-dropout 0.5", "half of the patch tokens in training"


def _more_parts(options: TrainOptions) -> int | None:
    """The next larger number of micro-batches that a step can be computed in."""
    parts = range(options.accumulate + 1, options.batch_size + 1)
    return next((number for number in parts if options.batch_size % number == 0), None)


def _given(options: TrainOptions) -> frozenset[str]:
    return frozenset(name for name in _NAMES if getattr(options, name) is not None)


def _filled(options: TrainOptions, size: str, encoder_dim: int) -> TrainOptions:
    """The options with what they leave out from a set, as far as it fits."""
    chosen = SIZES[size]
    width = options.core_dim or chosen.core_dim
    if width is None or (options.core_dim is None and width >= encoder_dim):
        width = options.core_dim  # the encoder's own: no Linear in front
    values: dict[str, Any] = {"core_dim": width, "num_layers": options.num_layers or chosen.num_layers}
    values["num_heads"] = options.num_heads or _heads(chosen.num_heads, width or encoder_dim)
    taken = inspect.signature(READOUTS[options.task]).parameters
    readout = {name: getattr(chosen, name) if argument in taken else None for name, argument in _READOUT.items()}
    values["readout_dim"] = options.readout_dim or readout["readout_dim"]
    values["readout_hidden"] = options.readout_hidden or readout["readout_hidden"]
    values["readout_heads"] = options.readout_heads or _heads(readout["readout_heads"], values["readout_dim"])
    return dataclasses.replace(options, **values)


def _check_heads(option: str, num_heads: int, width: int) -> None:
    try:
        check_heads(width, num_heads)
    except UsageError as error:
        raise UsageError(f"--{option} {num_heads}: {error}") from None


def _heads(wanted: int | None, width: int | None) -> int | None:
    """The most heads up to `wanted` that divide the width."""
    if wanted is None or width is None:
        return wanted
    return next(heads for heads in range(wanted, 0, -1) if width % heads == 0)

"""`vfz cache verify --encoder`: is the encoder of today the one that made the cache?

Every cache keeps 16 golden frames as pixels, and the tokens they gave. The pixels are encoded again and the tokens
compared; where the videos are still there, the frames are decoded again too and the pixels compared.

Pass marks. What is encoded now is compared with what the stored tokens stand for, so the mark for the relative error
(RMS difference in parts of the tokens' spread, each channel divided by its own) covers two independent errors:

- of storing: 1.5 times what the column's calibration measured (fp16 0.0003, int8 0.005 to 0.01, int4 0.08 to 0.13; both
  roundings of a converted cache), since golden frames are a part of that sample;
- of computing: another machine, or a GPU instead of a CPU. Measured on EfficientNet-Lite0 and a ViT-S: float32 with
  AVX-512 against SSE kernels 3e-6, bfloat16 with and without its own instructions 0.005 to 0.03. TF32, which GPUs may
  use for float32, has three bits more than bfloat16, so an eighth of the latter's distance from float32 (0.007 to
  0.05). The marks are 0.01 for float32, 0.02 for float16, 0.05 for bfloat16.

So the marks are 0.01 (fp32, fp16), 0.013 to 0.018 (int8) and 0.12 to 0.2 (int4). Other weights give 1 or more, another
crop 0.3, another resize filter 0.03 to 0.1 (which an int4 cache may not tell; the pixels do). The mean cosine must be
at least 1 - 2 * mark^2; the least one is shown, for a token near zero can have any.

Pixels of another machine may differ by rounding in colour conversion and resizing: 2 of 255 pass.

Shapes: G golden frames, N tokens, D channels, S the side of the input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.devices import choose_device
from vfz.pipeline.encoder.batching import prepared_frames
from vfz.pipeline.engine.columns import layers_of, tokens_of
from vfz.pipeline.errors import DatasetError, DecodeError, UsageError
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.pipeline.format.calibration import Calibration
from vfz.pipeline.format.golden import GoldenFrames
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.recipe import recipe_from_dict
from vfz.pipeline.stores import Column
from vfz.pipeline.stores.quantization import expand, relative_error

STORING_FACTOR = 1.5
COMPUTING_ERROR = {"float32": 0.01, "float16": 0.02, "bfloat16": 0.05}
"""Relative error, by the dtype the encoder computes in, that another machine may add."""
MAX_PIXEL_DIFFERENCE = 2


def verify_encoder(
    path: str | Path, *, weights: Path | None = None, root: Path | None = None, device: str = "auto"
) -> EncoderReport:
    """Encodes the golden frames of a cache again.

    Args:
        path: the cache.
        weights: the encoder's weights file; None: the source used at extraction.
        root: where the videos lie now; None: where they were at extraction.
        device: a torch device, or `auto`.

    Raises:
        CacheMismatchError: the weights found are not those that the cache was made with.
        CacheFormatError: the cache or its golden frames are damaged.
        EncoderError: the weights cannot be had.
        UsageError: the cache has no golden frames, or `root` is no folder.
    """
    path = Path(path)
    if root is not None and not root.is_dir():
        raise UsageError(f"--root {root} is not a folder; name the one that the videos lie in now, or leave it out")
    cache = FeatureCache(path, allow_incomplete=True)
    contents = cache.contents
    if not contents.golden:
        raise UsageError(f"{path} has no golden frames; its encoder cannot be verified")
    golden = cache.folder.golden(contents)
    columns = [column for column in contents.columns if column.key in golden.arrays]
    live = LiveEncoder(cache, layers=layers_of(columns), device=choose_device(device), root=root, weights=weights)
    tokens = live.encode(torch.from_numpy(golden.pixels_GCHW))
    calibrations = cache.calibrations
    autocast = str(cache.recipe["encoder"]["autocast"])
    pixels = _Pixels(live, cache, golden)
    return EncoderReport(
        encoder=live.encoder.name,
        weights_sha256=live.encoder.weights_sha256,
        device=str(live.encoder.device),
        num_frames=len(golden.pixels_GCHW),
        columns=tuple(
            _check_column(
                column,
                tokens_of(tokens, column).cpu(),
                stored_tokens(golden, column, calibrations[column.key]),
                calibrations[column.key],
                autocast=autocast,
            )
            for column in columns
        ),
        num_decoded=pixels.num_decoded,
        max_pixel_difference=pixels.max_difference,
        not_decoded=pixels.not_decoded,
    )


@dataclass(frozen=True, kw_only=True)
class EncoderReport:
    """What `verify_encoder` saw.

    Attributes:
        encoder, weights_sha256, device: what encoded now.
        num_frames: golden frames.
        columns: each column of the cache that has golden tokens.
        num_decoded: golden frames that were decoded again.
        max_pixel_difference: of those, in units of 1/255; None where no video is there.
        not_decoded: why golden frames were not decoded again, by video.
    """

    encoder: str
    weights_sha256: str
    device: str
    num_frames: int
    columns: tuple[ColumnCheck, ...]
    num_decoded: int
    max_pixel_difference: int | None
    not_decoded: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether tokens, and the pixels that could be compared, are those of the cache."""
        same_pixels = self.max_pixel_difference is None or self.max_pixel_difference <= MAX_PIXEL_DIFFERENCE
        return same_pixels and all(column.passed for column in self.columns)


@dataclass(frozen=True, kw_only=True)
class ColumnCheck:
    """One column of the golden frames, encoded now and as it was stored.

    Attributes:
        column: its key.
        min_cosine, mean_cosine: over the tokens of all golden frames.
        relative_error: RMS difference in parts of the tokens' spread, each channel divided by its own.
        cosine_mark, error_mark: least mean cosine and largest error that pass.
        passed: whether they do.
    """

    column: str
    min_cosine: float
    mean_cosine: float
    relative_error: float
    cosine_mark: float
    error_mark: float

    @property
    def passed(self) -> bool:
        """Within both marks; false for tokens that are not finite."""
        return self.mean_cosine >= self.cosine_mark and self.relative_error <= self.error_mark


def pass_marks(precision_error: float, autocast: str) -> tuple[float, float]:
    """Least mean cosine and largest relative error that pass; see the module's docstring.

    Args:
        precision_error: of the column's calibration.
        autocast: dtype the encoder computes in.
    """
    error = math.hypot(STORING_FACTOR * precision_error, COMPUTING_ERROR[autocast])
    return 1 - 2 * error**2, error


def stored_tokens(golden: GoldenFrames, column: Column, calibration: Calibration) -> torch.Tensor:
    """What the golden tokens of a column stand for, float32 [G, N, D]."""
    scale = None if column.scale is None else torch.from_numpy(golden.arrays[column.scale.key])
    payload = torch.from_numpy(golden.arrays[column.key])
    return expand(payload, scale, precision=column.precision, stats=calibration.stats, dim=column.dim)


def _check_column(
    column: Column, now_GND: torch.Tensor, stored_GND: torch.Tensor, calibration: Calibration, *, autocast: str
) -> ColumnCheck:
    cosine_GN = _cosine(now_GND, stored_GND)
    cosine_mark, error_mark = pass_marks(calibration.precision_error or 0.0, autocast)
    return ColumnCheck(
        column=column.key,
        min_cosine=float(cosine_GN.min()),
        mean_cosine=float(cosine_GN.mean()),
        relative_error=relative_error(stored_GND, now_GND, calibration.stats),
        cosine_mark=cosine_mark,
        error_mark=error_mark,
    )


def _cosine(one_GND: torch.Tensor, other_GND: torch.Tensor) -> torch.Tensor:
    """Cosine of each pair of tokens [G, N]; two zero tokens are the same."""
    one_GND, other_GND = one_GND.double(), other_GND.double()
    norms_GN = one_GND.norm(dim=-1) * other_GND.norm(dim=-1)
    both_zero_GN = (one_GND == 0).all(-1) & (other_GND == 0).all(-1)
    product_GN = (one_GND * other_GND).sum(-1)
    return torch.where(both_zero_GN, 1.0, product_GN / norms_GN.clamp_min(1e-300))


class _Pixels:
    """Decodes golden frames again where their videos are still there.

    Attributes:
        num_decoded, max_difference, not_decoded: as in `EncoderReport`.
    """

    def __init__(self, live: LiveEncoder, cache: FeatureCache, golden: GoldenFrames) -> None:
        self.num_decoded, self.not_decoded = 0, dict[str, str]()
        self.max_difference: int | None = None
        self._live, self._golden = live, golden
        self._frames = recipe_from_dict(cache.recipe).frames
        rows = {row.id: row for row in cache.videos if row.view == 0}
        for video_id in dict.fromkeys(golden.video_ids):
            reason = self._compare(video_id, rows.get(video_id))
            if reason:
                self.not_decoded[video_id] = reason

    def _compare(self, video_id: str, row: LedgerRow | None) -> str:
        """Decodes the golden frames of one video; returns why it could not."""
        if row is None:
            return "it is in no plan of the cache"
        try:
            source = self._live.source_of(row)
            if not source.exists():
                return f"{source} is not there"
            if row.source_digest is not None and source.digest() != row.source_digest:
                return f"{source} is another file now"
            return self._compare_frames(video_id, source)
        except (DatasetError, DecodeError, UsageError, OSError) as error:
            return str(error)

    def _compare_frames(self, video_id: str, source: VideoSource) -> str:
        wanted = {
            pts_seconds: number
            for number, (of, pts_seconds) in enumerate(
                zip(self._golden.video_ids, self._golden.pts_seconds, strict=True)
            )
            if of == video_id
        }
        for frame in prepared_frames(source, self._frames, self._live.encoder.preprocess):
            number = wanted.pop(frame.pts_seconds, None)
            if number is not None:
                before_CSS = torch.from_numpy(self._golden.pixels_GCHW[number]).int()
                difference = int((frame.pixels_CHW.int() - before_CSS).abs().max())
                self.max_difference = max(difference, self.max_difference or 0)
                self.num_decoded += 1
            if not wanted:
                return ""
        return f"{source} has no frame at {min(wanted):.3f} s any more"

"""Videos that are in no cache, as tokens: what a cache of some recipe would hold of them, without making one.

Used to ask what was trained on a cache about other videos. Decoding is that of extraction, in processes that may hang
and be killed; the encoder is that of the recipe, or is refused; tokens are rounded as the cache rounds them, so that a
video that is in the cache gives its cached tokens (of a ViT to the bit, on a device of the same kind).

Only the frames that are asked for are encoded, those of several videos together where one does not fill a batch. Which
those are is known when all of a video has been decoded. Its frames are held until then, resized, up to `HELD_BYTES`; a
longer video is decoded twice.

Shapes: F frames of a video by the recipe's rule, n of them that are asked for, K views, N tokens, D channels, S the
side of the encoder's picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfz.pipeline.decoding.base import VideoSource
from vfz.pipeline.decoding.pool import DecodePool, default_num_workers
from vfz.pipeline.decoding.process import VideoStream
from vfz.pipeline.encoder.batching import frame_gatherer
from vfz.pipeline.encoder.layers import LayerTokens
from vfz.pipeline.encoder.transforms import cropper_of
from vfz.pipeline.engine.columns import columns_of, first_unstorable, largest_of, tokens_of
from vfz.pipeline.errors import DecodeError, UsageError
from vfz.pipeline.extraction.live_encoder import encoder_of
from vfz.pipeline.format.calibration import Calibration
from vfz.pipeline.recipe import QUANTISED, recipe_from_dict
from vfz.pipeline.stores.metadata import Column
from vfz.pipeline.stores.quantization import ChannelStats, expand, to_stored

HELD_BYTES = 256 * 1024**2
"""Of resized frames of one video: some 1,700 of 224 x 224 pixels."""

Chooser = Callable[[NDArray[np.float64]], NDArray[np.int64]]
"""From the times of a video's F frames to the numbers of those that are wanted, ascending, each once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedVideo:
    """The tokens of one video.

    Attributes:
        id: as it was given.
        error: why it has no tokens; empty where it has.
        pts_seconds: [F] times of all frames that the rule gives.
        numbers: [n] of those that were chosen, ascending.
        layers_KnND: float32 tokens of each layer on the device, as they come back from the cache.
    """

    id: str
    error: str = ""
    pts_seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    layers_KnND: Mapping[str, Tensor] = field(default_factory=dict)


class NewVideos:
    """Decodes and encodes videos by the recipe of a cache.

    Args:
        recipe: of the cache, as its header has it.
        request: how its encoder was built, of its provenance; None where that is not known.
        parts: of each layer that is wanted the parts (`prefix`, `patch`), in the order in which they are joined.
        views: which crops. Those after the first follow from a video's id, too.
        device: where the encoder computes.
        weights: the encoder's weights file; None: the source used at extraction.
        calibrations: of the cache, by column key; needed for int8 and int4.
        made: what messages call what was made with the encoder.
        num_workers: decode processes; None: half of the cores, at most 8.
        time_limit_seconds: how long one video may be decoded before it has failed.

    Raises:
        CacheMismatchError: when the weights found are not those of the recipe. UsageError: int8 or int4 without the
        calibration. EncoderError: no weights. CacheFormatError: no recipe that this vfz knows.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        *,
        request: Mapping[str, Any] | None,
        parts: Mapping[str, Sequence[str]],
        views: Sequence[int],
        device: torch.device,
        made: str,
        weights: Path | None = None,
        calibrations: Mapping[str, Calibration] | None = None,
        num_workers: int | None = None,
        time_limit_seconds: float = 600.0,
    ) -> None:
        self._recipe, self._parts, self._views = recipe_from_dict(dict(recipe)), parts, tuple(views)
        self._stats = self._rounding(parts, calibrations or {}, made)
        self._encoder = encoder_of(
            self._recipe.encoder, request, layers=tuple(parts), device=device, weights=weights, made=made
        )
        self._columns = self._columns_of(made)
        size = self._encoder.preprocess.image_size
        self._held_frames = max(1, HELD_BYTES // (3 * size * size * len(self._views)))
        self._num_workers = num_workers or default_num_workers(device)
        self._time_limit_seconds = time_limit_seconds

    def encode(self, videos: Sequence[tuple[str, VideoSource]], choose: Chooser) -> Iterator[EncodedVideo]:
        """The tokens of videos, in their order; one that cannot be used comes with its error.

        Args:
            videos: id and source of each.
            choose: which of a video's frames are wanted.

        Raises:
            RunError: no decode process can be started.
        """
        waiting: list[_Decoded] = []
        with self._pool(self._num_workers) as pool:
            streams = pool.videos(source for _, source in videos)
            for (video_id, _), stream in zip(videos, streams, strict=True):
                waiting.append(self._decode(video_id, stream, choose))
                if sum(one.num_pictures for one in waiting) >= self._encoder.batch_size:
                    yield from self._tokens(waiting)
                    waiting = []
            yield from self._tokens(waiting)

    def _pool(self, num_workers: int) -> DecodePool:
        return DecodePool(self._recipe.frames, num_workers=num_workers, time_limit_seconds=self._time_limit_seconds)

    def _decode(self, video_id: str, stream: VideoStream, choose: Chooser) -> _Decoded:
        """The chosen frames of a video, resized, or why there are none."""
        times: list[float] = []
        try:
            pixels_KFCSS = self._pictures(video_id, self._timed(stream, times), most=self._held_frames)
            if not times:
                return _Decoded(id=video_id, error=f"{stream.source.name}: has no frame where the recipe takes some")
            pts_seconds = np.array(times)
            numbers = choose(pts_seconds)
            if pixels_KFCSS is not None:
                pixels_KnCSS = pixels_KFCSS[:, torch.from_numpy(numbers).to(pixels_KFCSS.device)]
            else:
                pixels_KnCSS = self._again(video_id, stream.source, numbers, num_frames=len(times))
        except DecodeError as error:
            return _Decoded(id=video_id, error=str(error))
        return _Decoded(id=video_id, pts_seconds=pts_seconds, numbers=numbers, pixels_KnCSS=pixels_KnCSS)

    @staticmethod
    def _timed(stream: VideoStream, times: list[float]) -> Iterator[NDArray[np.uint8]]:
        for frame in stream:
            times.append(frame.pts_seconds)
            yield frame.pixels_HWC

    def _pictures(self, video_id: str, frames: Iterable[NDArray[np.uint8]], *, most: int) -> Tensor | None:
        """Frames [K,F,3,S,S] in every view; None where there are more than `most`, which are gone through all the same.

        Raises:
            DecodeError: when the video cannot be decoded in full.
        """
        croppers = [cropper_of(self._recipe.views, video_id, view) for view in self._views]
        gatherers = [frame_gatherer(self._encoder.preprocess, self._encoder.device) for _ in self._views]
        count = 0
        for count, pixels_HWC in enumerate(frames, 1):
            if count > most:
                gatherers = []
            for gatherer, cropper in zip(gatherers, croppers, strict=False):
                gatherer.add(pixels_HWC, cropper)
        return torch.stack([gatherer.take() for gatherer in gatherers]) if count and gatherers else None

    def _again(self, video_id: str, source: VideoSource, numbers: NDArray[np.int64], *, num_frames: int) -> Tensor:
        """The chosen frames [K,n,3,S,S] of a video that is too long to be held, by decoding it once more."""
        wanted, times = set(numbers.tolist()), list[float]()
        with self._pool(1) as pool:
            streams = pool.videos([source])
            frames = enumerate(self._timed(next(streams), times))
            wanted_frames = (picture for number, picture in frames if number in wanted)
            pixels = self._pictures(video_id, wanted_frames, most=len(numbers))
        if pixels is None or len(times) != num_frames or pixels.shape[1] != len(numbers):
            raise DecodeError(f"{source.name}: gives {len(times)} frames now, gave {num_frames}; is it being written?")
        return pixels

    def _tokens(self, videos: Sequence[_Decoded]) -> Iterator[EncodedVideo]:
        """Encodes the chosen frames of some videos together."""
        good = [video.pixels_KnCSS.flatten(0, 1) for video in videos if video.pixels_KnCSS is not None]
        tokens = self._encoder.encode(torch.cat(good)) if good else {}
        largest = {
            key: values.cpu().numpy() for key, values in largest_of(tokens, self._columns if good else ()).items()
        }
        start = 0
        for video in videos:
            if video.pixels_KnCSS is None:
                yield EncodedVideo(id=video.id, error=video.error)
                continue
            span = slice(start, start + video.num_pictures)
            start = span.stop
            bad = first_unstorable(largest, self._columns, span, autocast=self._recipe.encoder.autocast)
            if bad is not None:
                yield EncodedVideo(id=video.id, error=bad)
                continue
            yield EncodedVideo(
                id=video.id,
                pts_seconds=video.pts_seconds,
                numbers=video.numbers,
                layers_KnND={layer: self._layer(tokens, layer, span) for layer in self._parts},
            )

    def _layer(self, tokens: Mapping[str, LayerTokens], layer: str, span: slice) -> Tensor:
        columns = {str(column.part): column for column in self._columns if column.layer == layer}
        parts = [self._rounded(tokens_of(tokens, columns[part])[span], columns[part]) for part in self._parts[layer]]
        joined_MND = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return joined_MND.view(len(self._views), -1, *joined_MND.shape[1:])

    def _rounded(self, tokens_MND: Tensor, column: Column) -> Tensor:
        """Tokens as they come back from the cache."""
        storage = self._recipe.storage
        for precision in filter(None, (storage.converted_from, storage.precision)):
            stats = self._stats.get(column.key)
            stored = to_stored(tokens_MND, precision, stats)
            tokens_MND = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=column.dim)
        return tokens_MND

    def _rounding(
        self, parts: Mapping[str, Sequence[str]], calibrations: Mapping[str, Calibration], made: str
    ) -> dict[str, ChannelStats]:
        """The statistics that tokens are rounded by, by column key.

        Raises:
            UsageError: when they are needed and not there.
        """
        storage = self._recipe.storage
        if storage.converted_from in QUANTISED:
            raise UsageError(
                f"{made} is of tokens that were {storage.converted_from} before they were {storage.precision}, and new "
                f"videos cannot be rounded twice alike; predict the videos of a cache with --cache"
            )
        if storage.precision not in QUANTISED:
            return {}
        keys = [f"layer_{layer}/{part}" for layer, some in parts.items() for part in some]
        if missing := [key for key in keys if key not in calibrations]:
            raise UsageError(
                f"{made} is of {storage.precision} tokens, and the calibration of {missing[0]} is in its cache, which "
                "is not there; say with --cache where that is"
            )
        return {key: calibrations[key].stats for key in keys}

    def _columns_of(self, made: str) -> tuple[Column, ...]:
        """Of each part that is wanted, as it is stored first."""
        storage = self._recipe.storage
        columns = columns_of(self._encoder.shapes, storage.converted_from or storage.precision)
        there = {(column.layer, str(column.part)) for column in columns}
        for layer, parts in self._parts.items():
            for part in parts:
                if (layer, part) not in there:
                    raise UsageError(
                        f"layer {layer} of {self._encoder.name} has no {part} tokens, and {made} needs some"
                    )
        return tuple(column for column in columns if column.part in self._parts[column.layer])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Decoded:
    """A video on its way to the encoder."""

    id: str
    error: str = ""
    pts_seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    pixels_KnCSS: Tensor | None = None

    @property
    def num_pictures(self) -> int:
        """Frames times views."""
        return 0 if self.pixels_KnCSS is None else self.pixels_KnCSS.shape[0] * self.pixels_KnCSS.shape[1]

"""Frame rules on the command line, and what a cache made with them holds."""

import numpy as np
import pytest
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.live_encoder import LiveEncoder
from vfz.pipeline.extraction.options import ExtractOptions


@pytest.mark.quick
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"frames": "random"}, "--frames 'random' is not allowed; choose from fps, uniform, centred"),
        ({"clip_frames": 8}, "--clip-frames 8 is for --frames uniform or centred"),
        ({"frames": "uniform"}, "--frames uniform takes --clip-frames"),
        ({"frames": "uniform", "clip_frames": 8, "fps": 6}, "leave --fps 6 out"),
        ({"frames": "centred", "clip_frames": 0}, "--clip-frames 0 is too small"),
        ({"decode_workers": 0}, "--decode-workers 0 is too small"),
        ({"video_timeout": 0}, "--video-timeout 0.0 is too small"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(values, words):
    with pytest.raises(UsageError) as caught:
        ExtractOptions(dataset="synthetic", **values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("values", "num_frames"), [({"frames": "uniform", "clip_frames": 4}, 4), ({"frames": "centred"}, 16)]
)
def test_every_video_of_a_cache_has_as_many_frames_as_asked_for(synthetic_options, tmp_path, values, num_frames):
    options = synthetic_options(root=tmp_path / "videos", num_videos=4, out=tmp_path / "caches", **values)
    cache = FeatureCache(extract(options).cache)
    live = LiveEncoder(cache, layers=cache.layers, device=torch.device("cpu"))
    for row in cache.ok_videos():
        clip = cache.read(row.id)
        assert row.num_frames == num_frames
        assert (np.diff(clip.pts_seconds) > 0).all()
        tokens = live.encode(live.pixels(row, np.arange(num_frames)))["3"].patch_BND
        assert np.allclose(clip.tokens("3"), tokens, atol=2e-2, rtol=2e-2), "the same frames, live"

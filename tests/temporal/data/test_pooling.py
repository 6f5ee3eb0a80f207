"""Pooled features as arrays: what reading each video and averaging by hand gives."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vfz.pipeline.errors import UnknownNameError
from vfz.temporal import to_numpy

pytestmark = pytest.mark.quick


def frames_by_hand(cache, video, layers):
    """The vector of each frame: CLS tokens of the layers, then the mean of the last layer's patches; means without."""
    clip = cache.read(video)
    cls = [clip.tokens(layer, "prefix")[:, 0] for layer in layers if "prefix" in cache.layers[layer]]
    means = [clip.tokens(layer, "patch").astype(np.float64).mean(axis=1) for layer in layers]
    return np.concatenate([*cls, *(means[-1:] if cls else means)], axis=1)


@pytest.mark.parametrize("layers", [None, 11, ["5", "11"], -1])
def test_a_row_is_the_mean_the_last_or_each_frame_of_a_video(vit_cache, layers):
    named = {None: ["11"], 11: ["11"], -1: ["11"]}.get(layers if not isinstance(layers, list) else 0, layers)
    rows = vit_cache.ok_videos("test")
    by_hand = {row.id: frames_by_hand(vit_cache, row.id, named) for row in rows}
    for pool, rows_of in {
        "mean": lambda frames: frames.mean(axis=0, keepdims=True),
        "last": lambda frames: frames[-1:],
        "frame": lambda frames: frames,
    }.items():
        X, y, ids = to_numpy(vit_cache, "test", pool=pool, layers=layers)
        expected = np.concatenate([rows_of(by_hand[row.id]) for row in rows])
        assert X.dtype == np.float32
        np.testing.assert_allclose(X, expected, rtol=1e-5, atol=1e-5)
        assert list(dict.fromkeys(ids)) == [row.id for row in rows]
        labels = {row.id: row.label for row in rows}
        assert y.tolist() == [labels[video] for video in ids]


def test_they_go_into_scikit_learn_as_they_are(synthetic_cache):
    X, y, _ = to_numpy(str(synthetic_cache.path), "train")
    assert X.shape == (len(y), 112)
    assert LogisticRegression(max_iter=10_000).fit(X, y).score(X, y) > 0.3


def test_what_is_not_there_is_named(synthetic_cache):
    with pytest.raises(UnknownNameError, match="pool of this probe 'max'"):
        to_numpy(synthetic_cache, "train", pool="max")
    with pytest.raises(UnknownNameError, match="'trian'; did you mean train"):
        to_numpy(synthetic_cache, "trian")

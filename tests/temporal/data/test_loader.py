"""Which frames make a clip and which clips make a batch: decided by the seed and the epoch, and nothing else."""

import numpy as np
import pytest
import torch
from helpers.tiny_cache import add_layer, fill_cache, new_cache
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UsageError
from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import check_parts, choose_eval_split, labelled_videos, num_missing

CPU = torch.device("cpu")


def loader(cache, *, seed=0, batch_size=8, split="train", rule=None, parts="all", layers=("5", "11")):
    return ClipLoader(
        CachedTokens(cache, layers=layers, parts=parts),
        labelled_videos(cache, split, layers=layers, parts=parts),
        rule=rule or ClipRule(num_frames=4),
        batch_size=batch_size,
        device=CPU,
        seed=seed,
    )


@given(
    num_frames=st.integers(1, 40),
    stride=st.integers(1, 6),
    num_video_frames=st.integers(1, 300),
    position=st.floats(0, 1),
)
def test_a_clip_has_its_length_lies_in_the_video_and_keeps_its_stride(num_frames, stride, num_video_frames, position):
    frames = ClipRule(num_frames=num_frames, stride=stride).frames(num_video_frames, position=position)
    assert len(frames) == num_frames
    assert 0 <= frames.min() <= frames.max() < num_video_frames
    steps = np.diff(frames)
    if (num_frames - 1) * stride + 1 <= num_video_frames:
        assert (steps == stride).all()
    else:
        assert frames[0] == 0, "a video that is too short is used from its start"
        assert (frames == np.minimum(np.arange(num_frames) * stride, num_video_frames - 1)).all()


def test_a_centred_clip_leaves_as_much_before_as_after():
    frames = ClipRule(num_frames=4, stride=2).frames(17)
    assert frames.tolist() == [5, 7, 9, 11]


def test_every_clip_start_can_be_drawn():
    rule = ClipRule(num_frames=4)
    starts = {rule.frames(7, position=position)[0] for position in np.linspace(0, 1, 50)}
    assert starts == {0, 1, 2, 3}


def test_an_epoch_holds_every_video_once_in_another_order_each_time(vit_cache):
    def ids(epoch):
        return [video for batch in loader(vit_cache).training_epoch(epoch) for video in batch.video_ids]

    assert ids(0) == ids(0)
    assert ids(0) != ids(1)
    assert sorted(ids(0)) == sorted(ids(1)) == sorted(row.id for row in vit_cache.ok_videos("train"))


def test_the_order_does_not_depend_on_the_batch_size(vit_cache):
    def ids(batch_size):
        batches = loader(vit_cache, batch_size=batch_size).training_epoch(3)
        return [video for batch in batches for video in batch.video_ids]

    assert ids(8) == ids(5)


def test_batches_hold_the_cached_tokens_of_their_videos_with_prefix_tokens_in_front(vit_cache):
    batch = next(loader(vit_cache, rule=ClipRule(num_frames=6)).shuffled(0))
    assert [layer.shape for layer in batch.layers_BTND] == [(8, 6, 17, 192)] * 2
    for position, video in enumerate(batch.video_ids):
        expected = vit_cache.read(video).tokens("11", "all")
        assert np.array_equal(batch.layers_BTND[1][position].numpy(), expected)
        row = next(row for row in vit_cache.videos if row.id == video)
        assert row.label == batch.labels_B[position]


@pytest.mark.parametrize(("parts", "num_tokens"), [("all", 17), ("patch", 16), ("prefix", 1)])
def test_parts_are_chosen(vit_cache, parts, num_tokens):
    assert check_parts(vit_cache, ("11",), parts) == (num_tokens, 192)
    batch = next(loader(vit_cache, parts=parts, layers=("11",)).in_order())
    assert batch.layers_BTND[0].shape == (8, 4, num_tokens, 192)


def test_a_layer_or_part_that_is_not_cached_is_refused(vit_cache, synthetic_cache):
    with pytest.raises(UsageError, match=r"'7' is not in .* it has 5, 11"):
        check_parts(vit_cache, ("7",), "all")
    with pytest.raises(UsageError, match="no prefix tokens; it has patch"):
        check_parts(synthetic_cache, ("3",), "prefix")


def test_a_split_that_is_not_there_is_refused(vit_cache):
    with pytest.raises(UsageError, match=r"'trian'.*train"):
        labelled_videos(vit_cache, "trian")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_batches_are_the_clips_themselves_bit_by_bit_and_stay_when_the_next_is_read(tmp_path, precision):
    new_cache(tmp_path / "cache", num_videos=10, shard_size_videos=4, precision=precision)
    fill_cache(tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    rule = ClipRule(num_frames=4)
    for parts in ("all", "patch", "prefix"):
        batches = list(loader(cache, batch_size=3, parts=parts, layers=("2", "11"), rule=rule).in_order())
        assert [len(batch.video_ids) for batch in batches] == [3, 3, 1]
        for batch in batches:
            for number, video_id in enumerate(batch.video_ids):
                num_frames = 3 + int(video_id[1:])
                clip = cache.read(video_id, rule.frames(num_frames))
                for layer, tokens_BTND in zip(("2", "11"), batch.layers_BTND, strict=True):
                    assert tokens_BTND.dtype == torch.float32
                    np.testing.assert_array_equal(tokens_BTND[number].numpy(), clip.tokens(layer, parts))


def test_videos_that_lack_a_layer_are_left_out_and_counted_where_it_is_used(tmp_path):
    new_cache(tmp_path / "cache", num_videos=9)
    fill_cache(tmp_path / "cache", bad=("v2",))
    add_layer(tmp_path / "cache", "23")
    fill_cache(tmp_path / "cache", number=1, layers=("23",), bad=("v5", "v0"))
    cache = FeatureCache(tmp_path / "cache")

    def names(layer):
        return [row.id for row in labelled_videos(cache, "val", layers=(layer,), parts="patch")]

    assert (names("11"), names("23")) == (["v5", "v8"], ["v8"])
    assert num_missing(cache, "val", layers=("11",), parts="all") == 1
    assert num_missing(cache, "val", layers=("11", "23"), parts="all") == 2
    (batch,) = loader(cache, split="val", layers=("23",), rule=ClipRule(num_frames=2)).in_order()
    assert batch.video_ids == ("v8",)


def test_the_evaluated_split_is_val_where_it_has_videos(tmp_path):
    new_cache(tmp_path / "cache", num_videos=3)
    fill_cache(tmp_path / "cache", bad=("v2",))
    cache = FeatureCache(tmp_path / "cache")
    assert choose_eval_split(cache, "train") == "train"
    with pytest.raises(
        UsageError,
        match=r"has no val, validation or test video with tokens of all layers; its splits are train, val: name",
    ):
        choose_eval_split(cache, None)


def test_the_evaluated_split_is_one_that_has_the_layers_and_parts_that_are_used(tmp_path):
    new_cache(tmp_path / "cache", num_videos=6)
    fill_cache(tmp_path / "cache")
    add_layer(tmp_path / "cache", "23")
    fill_cache(tmp_path / "cache", number=1, layers=("23",), bad=("v2", "v5"))  # all of val
    cache = FeatureCache(tmp_path / "cache")
    for layers in (("11",), "11", 11):
        assert choose_eval_split(cache, None, layers=layers) == "val"
        assert choose_eval_split(cache, None, layers=layers, parts="patch") == "val"
    with pytest.raises(
        UsageError,
        match=r"no val, .* or test video with patch tokens of layers 23; its splits are train, val: name one",
    ):
        choose_eval_split(cache, None, layers=("23",), parts="patch")
    with pytest.raises(UsageError, match=r"'val' of .* with tokens of layers 23; splits with some: train$"):
        labelled_videos(cache, "val", layers=23)


def test_one_layer_is_a_selection_of_one(vit_cache):
    assert check_parts(vit_cache, 11, "all") == check_parts(vit_cache, "11", "all") == (17, 192)
    assert num_missing(vit_cache, "train", layers=11, parts="all") == 0
    batch = next(loader(vit_cache, layers="11").in_order())
    assert [layer.shape for layer in batch.layers_BTND] == [(8, 4, 17, 192)]
    with pytest.raises(UsageError, match="layers is empty; name some of the layers 5, 11"):
        check_parts(vit_cache, (), "all")

"""The order of clips: decided by seed and epoch, whoever reads them, however far ahead, from wherever on."""

import threading
import time

import numpy as np
import pytest
import torch
from helpers.tiny_cache import fill_cache, new_cache, num_frames_of, video_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheMismatchError, UnknownNameError, UsageError
from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import Augmentation, ClipRule
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import clip_videos, common_class_names

CPU = torch.device("cpu")
NUM_VIDEOS = 17
LAYER = "11"


def tiny_cache(folder, *, seed=0, **options):
    new_cache(folder, num_videos=NUM_VIDEOS, shard_size_videos=5, **options)
    fill_cache(folder, seed=seed)
    return FeatureCache(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """17 videos of 3 to 19 frames at 6 a second, in two views; 12 of them in `train`."""
    return tiny_cache(tmp_path_factory.mktemp("tiny") / "cache", views=(0, 1))


def loader(caches, *, views=(0,), parts="all", **options):
    defaults = {"rule": ClipRule(num_frames=4), "batch_size": 5, "device": CPU, "num_ahead": 0}
    videos = clip_videos(caches, "train", views=views)
    return ClipLoader(CachedTokens(caches, layers=(LAYER,), parts=parts), videos, **defaults | options)


def same(one, other):
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.video_ids == theirs.video_ids
        assert torch.equal(ours.layers_BTND[0], theirs.layers_BTND[0])
        for name in ("labels_B", "indices_B", "frame_mask_BT", "pts_seconds_BT"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def rows_of(batches):
    """Every clip as (video, first time, its tokens' sum): what tells it from others."""
    return [
        (video, float(batch.pts_seconds_BT[place, 0]), float(batch.layers_BTND[0][place].sum()))
        for batch in batches
        for place, video in enumerate(batch.video_ids)
    ]


VARIED = Augmentation(stride_factors=(1, 2), random_view=True, token_dropout=0.5)


@pytest.mark.quick
@settings(deadline=None, max_examples=40)
@given(world_size=st.integers(1, 7), batch_size=st.integers(1, 14), epoch=st.integers(0, 3), seed=st.integers(0, 3))
def test_ranks_share_every_batch_between_them(cache, world_size, batch_size, epoch, seed):
    options = {"batch_size": batch_size, "seed": seed, "augmentation": VARIED, "views": (0, 1)}
    whole = list(loader(cache, **options).training_epoch(epoch))
    shares = [
        list(loader(cache, rank=rank, world_size=world_size, **options).training_epoch(epoch))
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {len(whole)}
    for number, batch in enumerate(whole):
        of_ranks = [share[number] for share in shares]
        real = [rank_batch for rank_batch in of_ranks if rank_batch.weight]
        assert sorted(rows_of(real)) == sorted(rows_of([batch]))
        # weighted means over ranks are the mean over the batch
        means = sum(b.weight * float(b.layers_BTND[0].double().mean()) for b in of_ranks) / world_size
        assert means == pytest.approx(float(batch.layers_BTND[0].double().mean()), abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    start_batch=st.integers(0, 4), num_ahead=st.integers(0, 3), epoch=st.integers(0, 2), batch_size=st.integers(3, 9)
)
def test_an_epoch_taken_up_at_any_batch_goes_on_as_it_would_have(cache, start_batch, num_ahead, epoch, batch_size):
    options = {"batch_size": batch_size, "augmentation": VARIED, "views": (0, 1)}
    whole = list(loader(cache, **options).training_epoch(epoch))
    rest = list(loader(cache, num_ahead=num_ahead, **options).training_epoch(epoch, start_batch=start_batch))
    same(rest, whole[start_batch:])


@settings(deadline=None, max_examples=30)
@given(epoch=st.integers(0, 9), seed=st.integers(0, 9), batch_size=st.integers(1, 20), num_frames=st.integers(1, 12))
def test_an_epoch_has_every_video_once_in_frames_that_it_has(cache, epoch, seed, batch_size, num_frames):
    rule = ClipRule(num_frames=num_frames)
    batches = list(loader(cache, seed=seed, batch_size=batch_size, rule=rule).training_epoch(epoch))
    ids = [video for batch in batches for video in batch.video_ids]
    assert sorted(ids) == sorted(row.id for row in cache.ok_videos("train"))
    for batch in batches:
        assert batch.weight == 1
        for place, video in enumerate(batch.video_ids):
            frames = (batch.pts_seconds_BT[place] * 6).round().long()
            real = batch.frame_mask_BT[place]
            assert (frames < num_frames_of(video)).all()
            assert int(real.sum()) == min(num_frames, num_frames_of(video))
            assert (frames[~real] == num_frames_of(video) - 1).all()
            tokens = video_tokens(video)[0][f"layer_{LAYER}/patch"][frames.numpy()]
            assert np.array_equal(batch.layers_BTND[0][place, :, 1:].numpy(), tokens)


def test_reading_ahead_overlaps_and_keeps_the_order(cache):
    same(list(loader(cache, num_ahead=3).training_epoch(1)), list(loader(cache).training_epoch(1)))


class Watched(CachedTokens):
    """Keeps account of what was read, and fails at one batch."""

    def __init__(self, *args, fail_at=None, **options):
        super().__init__(*args, **options)
        self.num_read, self.fail_at, self.threads, self.views = 0, fail_at, set(), {}

    def read_clips(self, requests, device):
        self.threads.add(threading.current_thread().name)
        if self.num_read == self.fail_at:
            raise UsageError("this one cannot be read")
        self.num_read += 1
        self.views |= {request.id: request.view for request in requests}
        return super().read_clips(requests, device)


def watched(cache, **options):
    source = Watched(cache, layers=(LAYER,), parts="all", fail_at=options.pop("fail_at", None))
    rule = ClipRule(num_frames=2)
    return source, ClipLoader(
        source, clip_videos(cache, "train"), rule=rule, batch_size=1, device=CPU, num_ahead=2, **options
    )


def settled(source):
    """How much has been read when nothing more is."""
    before = -1
    while source.num_read != before:
        before = source.num_read
        time.sleep(0.3)
    return before


def test_a_thread_reads_ahead_but_not_far(cache):
    source, clips = watched(cache)
    batches = clips.in_order()
    next(batches)
    assert settled(source) == 1 + 2 + 1  # taken, waiting, and one that finds no room yet
    assert source.threads == {"vfz-prefetch"}
    assert len(list(batches)) == clips.num_batches - 1


def test_leaving_early_stops_the_thread(cache):
    _, clips = watched(cache)
    batches = clips.in_order()
    next(batches)
    assert any(thread.name == "vfz-prefetch" for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name == "vfz-prefetch" for thread in threading.enumerate())


def test_an_error_comes_up_at_the_batch_that_it_belongs_to(cache):
    _, clips = watched(cache, fail_at=2)
    batches = clips.in_order()
    assert len([next(batches), next(batches)]) == 2
    with pytest.raises(UsageError, match="this one cannot be read"):
        next(batches)
    assert not any(thread.name == "vfz-prefetch" for thread in threading.enumerate())


def test_two_epochs_at_a_time_do_not_disturb_each_other(cache):
    clips, alone = loader(cache, num_ahead=2), loader(cache)
    pairs = list(zip(clips.training_epoch(0), clips.in_order(), strict=True))
    same([one for one, _ in pairs], list(alone.training_epoch(0)))
    same([other for _, other in pairs], list(alone.in_order()))


def test_segments_are_spread_from_the_start_to_the_end_of_each_video(cache):
    (batch,) = loader(cache, batch_size=99, rule=ClipRule(num_frames=3)).in_order(num_segments=3)
    starts = (batch.pts_seconds_BT[:, 0] * 6).round().long().view(-1, 3)
    assert batch.indices_B.view(-1, 3).tolist() == [[number] * 3 for number in range(12)]
    for row, start in zip(cache.ok_videos("train"), starts.tolist(), strict=True):
        room = row.num_frames - 3
        assert start[0] == 0
        assert start[2] == room
        assert abs(start[1] - room / 2) <= 0.5


def test_all_views_of_a_video_can_be_evaluated(cache):
    (batch,) = loader(cache, batch_size=99, views=(0, 1)).in_order(num_segments=2, all_views=True)
    assert batch.indices_B.tolist() == np.repeat(np.arange(12), 4).tolist()
    assert batch.labels_B.shape == (48,)


def test_views_are_drawn_for_each_clip_and_epoch(cache):
    source = Watched(cache, layers=(LAYER,), parts="all")
    clips = ClipLoader(
        source,
        clip_videos(cache, "train", views=(0, 1)),
        rule=ClipRule(num_frames=2),
        batch_size=12,
        device=CPU,
        augmentation=Augmentation(random_view=True),
    )
    plans = []
    for epoch in range(6):
        list(clips.training_epoch(epoch))
        plans.append(dict(source.views))
    assert {view for plan in plans for view in plan.values()} == {0, 1}
    assert len({tuple(sorted(plan.items())) for plan in plans}) == 6
    list(clips.in_order())
    assert set(source.views.values()) == {0}


def test_stride_factors_are_drawn_among_those_that_fit(cache):
    clips = loader(cache, augmentation=Augmentation(stride_factors=(1, 2, 4)), rule=ClipRule(num_frames=4))
    found = {}
    for epoch in range(20):
        for batch in clips.training_epoch(epoch):
            for place, video in enumerate(batch.video_ids):
                step = int((batch.pts_seconds_BT[place, :2].diff() * 6).round())
                found.setdefault(video, set()).add(step)
                assert batch.frame_mask_BT[place].all() or num_frames_of(video) < 4
    assert found["v16" if "v16" in found else "v15"] == {1, 2, 4}
    assert found["v4"] == {1, 2}
    assert found["v1"] == {1}


def test_clips_stay_centred_where_that_is_wanted(cache):
    centred = loader(cache, augmentation=Augmentation(random_position=False))
    times = {row[0]: row[1] for row in rows_of(centred.training_epoch(0))}
    assert times == {row[0]: row[1] for row in rows_of(centred.in_order())}


def test_dropped_tokens_are_the_same_in_all_frames_of_a_batch_and_the_prefix_stays(cache):
    whole = list(loader(cache).training_epoch(0))
    dropped = list(loader(cache, augmentation=Augmentation(token_dropout=0.5)).training_epoch(0))
    chosen = set()
    for full, less in zip(whole, dropped, strict=True):
        full_BTND, less_BTND = full.layers_BTND[0], less.layers_BTND[0]
        assert less_BTND.shape[2] == 1 + 2
        kept = [n for n in range(5) if any(torch.equal(full_BTND[:, :, n], less_BTND[:, :, k]) for k in range(3))]
        assert kept[0] == 0
        assert torch.equal(full_BTND[:, :, kept], less_BTND)
        chosen.add(tuple(kept))
    assert len(chosen) > 1
    evaluated = next(loader(cache, augmentation=Augmentation(token_dropout=0.5)).in_order())
    assert evaluated.layers_BTND[0].shape[2] == 5


def test_there_is_nothing_to_drop_from_prefix_tokens(cache):
    with pytest.raises(UsageError, match="only prefix tokens"):
        next(loader(cache, parts="prefix", augmentation=Augmentation(token_dropout=0.5)).training_epoch(0))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_several_caches_of_one_recipe_are_read_as_one(tmp_path, precision):
    caches = [tiny_cache(tmp_path / name, seed=seed, precision=precision) for seed, name in enumerate("ab")]
    clips = loader(caches, batch_size=7)
    assert clips.num_clips == 24
    seen = []
    for batch in clips.training_epoch(0):
        for place, video in enumerate(batch.video_ids):
            number = int(batch.indices_B[place])
            origin = caches[number // 12]
            seen.append((number // 12, video))
            frames = (batch.pts_seconds_BT[place] * 6).round().long().tolist()
            expected = origin.read(video, frames, LAYER).tokens(LAYER, "all")
            assert np.array_equal(batch.layers_BTND[0][place].numpy(), expected)
    assert sorted(seen) == sorted((number, row.id) for number in (0, 1) for row in caches[number].ok_videos("train"))


def test_caches_of_other_recipes_are_refused_with_the_difference(tmp_path, cache):
    other = tiny_cache(tmp_path / "other", precision="fp32")
    with pytest.raises(
        CacheMismatchError, match=r"other was made by .* storage.precision: first fp16, other fp32; only"
    ):
        CachedTokens([cache, other], layers=(LAYER,), parts="all")
    with pytest.raises(CacheMismatchError, match=r"storage.precision: first"):
        clip_videos([cache, other], "train")
    with pytest.raises(UsageError, match="is given twice"):
        clip_videos([cache, FeatureCache(cache.path)], "train")
    with pytest.raises(UsageError, match="no cache was given"):
        clip_videos([], "train")
    assert common_class_names([cache, cache]) == ("left", "right")


def test_a_split_or_view_that_is_not_there_is_refused(cache):
    with pytest.raises(UnknownNameError, match=r"'trian'.*train"):
        clip_videos(cache, "trian")
    with pytest.raises(UsageError, match=r"view 2 is not in .*; it has the views 0, 1"):
        clip_videos(cache, "train", views=(0, 2))
    with pytest.raises(UsageError, match="no view was named"):
        clip_videos(cache, "train", views=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batches of 0 clips"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": -1}, "rank -1 of 1"),
    ],
)
def test_shares_that_cannot_be_are_refused(cache, options, message):
    with pytest.raises(UsageError, match=message):
        loader(cache, **options)


@pytest.mark.parametrize(
    "options", [{"stride_factors": ()}, {"stride_factors": (0, 1)}, {"token_dropout": 1.0}, {"token_dropout": -0.1}]
)
def test_augmentations_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError):
        Augmentation(**options)

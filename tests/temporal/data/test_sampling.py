"""Which frames make a clip: by stride, or by the time between them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfz.pipeline.errors import UsageError
from vfz.temporal.data.sampling import ClipRule

pytestmark = pytest.mark.quick

POSITIONS = st.floats(0, 1)


@st.composite
def times(draw):
    """Ascending presentation times of a video of variable rate."""
    gaps = draw(st.lists(st.floats(0.01, 0.5), min_size=0, max_size=60))
    return np.cumsum([draw(st.sampled_from([0.0, 1.5])), *gaps])


@settings(deadline=None)
@given(pts_seconds=times(), num_frames=st.integers(1, 20), step_seconds=st.floats(0.01, 2), position=POSITIONS)
def test_frames_are_the_nearest_to_their_times_and_ascend(pts_seconds, num_frames, step_seconds, position):
    clip = ClipRule(num_frames=num_frames, step_seconds=step_seconds).choose(
        len(pts_seconds), position=position, pts_seconds=pts_seconds
    )
    assert len(clip.numbers) == len(clip.mask) == num_frames
    assert 0 <= clip.numbers.min() <= clip.numbers.max() < len(pts_seconds)
    assert (np.diff(clip.numbers) >= 0).all()
    assert clip.mask[0]
    assert (np.diff(clip.mask.astype(int)) <= 0).all(), "what is repeated stands at the end"
    wanted = pts_seconds[clip.numbers[0]] + np.arange(num_frames) * step_seconds
    distances = np.abs(pts_seconds[:, None] - wanted)
    taken = np.abs(pts_seconds[clip.numbers] - wanted)
    np.testing.assert_allclose(taken, distances.min(axis=0), atol=1e-5)
    if pts_seconds[0] + (num_frames - 1) * step_seconds <= pts_seconds[-1]:
        assert clip.mask.all(), "a video that is long enough needs no padding"
    assert (clip.numbers[~clip.mask] == len(pts_seconds) - 1).all()


@settings(deadline=None)
@given(
    num_video_frames=st.integers(1, 80),
    num_frames=st.integers(1, 20),
    stride=st.integers(1, 5),
    fps=st.sampled_from([5.0, 6.0, 12.0, 29.97]),
    position=POSITIONS,
)
def test_a_step_of_some_cached_frames_is_a_stride(num_video_frames, num_frames, stride, fps, position):
    by_stride = ClipRule(num_frames=num_frames, stride=stride).choose(num_video_frames, position=position)
    by_time = ClipRule(num_frames=num_frames, step_seconds=stride / fps).choose(
        num_video_frames, position=position, pts_seconds=np.arange(num_video_frames) / fps
    )
    np.testing.assert_array_equal(by_time.numbers, by_stride.numbers)
    np.testing.assert_array_equal(by_time.mask, by_stride.mask)


def test_the_mask_says_where_the_last_frame_is_repeated():
    clip = ClipRule(num_frames=5, stride=2).choose(6)
    assert clip.numbers.tolist() == [0, 2, 4, 5, 5]
    assert clip.mask.tolist() == [True, True, True, False, False]
    clip = ClipRule(num_frames=4, step_seconds=0.5).choose(3, pts_seconds=np.array([0.0, 0.4, 1.0]))
    assert clip.numbers.tolist() == [0, 1, 2, 2]
    assert clip.mask.tolist() == [True, True, True, False]


def test_a_factor_stretches_stride_and_step():
    assert ClipRule(num_frames=3, stride=2).choose(20, position=0, factor=3).numbers.tolist() == [0, 6, 12]
    clip = ClipRule(num_frames=3, step_seconds=0.5).choose(9, position=0, factor=2, pts_seconds=np.arange(9) / 4)
    assert clip.numbers.tolist() == [0, 4, 8]
    assert ClipRule(num_frames=3, stride=2).fits(13, factor=3)
    assert not ClipRule(num_frames=3, stride=2).fits(12, factor=3)


def test_cached_frames_are_taken_again_where_there_are_fewer_than_asked_for():
    clip = ClipRule(num_frames=5, step_seconds=0.25).choose(3, pts_seconds=np.arange(3) / 2)
    assert clip.numbers.tolist() == [0, 0, 1, 1, 2]
    assert clip.mask.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "clips of 0 frames 1 apart"),
        ({"num_frames": 4, "stride": 0}, "clips of 4 frames 0 apart"),
        ({"num_frames": 4, "stride": 1.5}, "clips of 4 frames 1.5 apart"),
        ({"num_frames": 4, "step_seconds": 0.0}, "clip frames 0.0 s apart"),
        ({"num_frames": 4, "step_seconds": float("nan")}, "clip frames nan s apart"),
        ({"num_frames": 4, "stride": 2, "step_seconds": 0.5}, "2 cached frames and 0.5 s apart; give one of them"),
    ],
)
def test_rules_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ClipRule(**options)

"""Frames are sent in groups: in order, of one shape, small against the room, and never held back for long."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfz.pipeline.decoding import VideoFrame
from vfz.pipeline.decoding.messages import Room, Setup
from vfz.pipeline.decoding.worker import GROUP_BYTES, GROUP_FRAMES, GROUP_SECONDS, FrameGroups

pytestmark = pytest.mark.quick

SHAPES = [(8, 8, 3), (8, 4, 3), (512, 512, 3), (1024, 1024, 3)]


def setup_of(max_frames=512, max_bytes=1024**3):
    return Setup(spec={}, max_frames=max_frames, max_bytes=max_bytes)


def frames_of(shapes):
    return [
        VideoFrame(pixels_HWC=np.zeros(shape, np.uint8), pts_seconds=number / 10, number=number)
        for number, shape in enumerate(shapes)
    ]


def numbers_of(groups):
    return [[frame.number for frame in group] for group in groups]


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


@given(
    shapes=st.lists(st.sampled_from(SHAPES), max_size=60),
    max_frames=st.integers(1, 100),
    max_bytes=st.integers(1, 64 * 1024**2),
    pauses=st.lists(st.sampled_from([0.0, 0.001, 0.03, 0.2]), min_size=60, max_size=60),
)
def test_groups_hold_all_frames_in_order_and_keep_to_the_room(shapes, max_frames, max_bytes, pauses):
    """A child and its parent without a pipe: one adds where there is room, the other takes whole groups for room."""
    clock, groups, num_groups_taken = Clock(), [], 0
    setup = setup_of(max_frames, max_bytes)
    room, gathered = Room(max_frames, max_bytes), FrameGroups(setup, groups.append, clock)
    given_frames = frames_of(shapes)
    for frame, pause in zip(given_frames, pauses, strict=False):
        clock.seconds += pause
        if room.is_full:
            gathered.flush()
        while room.is_full:
            room.taken(len(groups[num_groups_taken]))  # there is one, or these two would wait for ever
            num_groups_taken += 1
        room.sent(frame.pixels_HWC.nbytes)
        gathered.add(frame)
        waiting = given_frames[sum(map(len, groups[:num_groups_taken])) : frame.number + 1]
        assert len(waiting) <= max_frames
        assert sum(each.pixels_HWC.nbytes for each in waiting[:-1]) < max_bytes
    gathered.flush()
    assert [frame for group in groups for frame in group] == given_frames
    for group in groups:
        num_bytes = [frame.pixels_HWC.nbytes for frame in group]
        assert len({frame.pixels_HWC.shape for frame in group}) == 1
        assert len(group) <= min(GROUP_FRAMES, max(1, max_frames // 4))
        assert len(group) == 1 or sum(num_bytes) <= min(GROUP_BYTES, max_bytes / 4)


def test_fast_frames_of_a_large_room_go_sixteen_together():
    groups = []
    gathered = FrameGroups(setup_of(), groups.append, Clock())
    for frame in frames_of([(8, 8, 3)] * 40):
        gathered.add(frame)
    assert numbers_of(groups) == [list(range(16)), list(range(16, 32))]
    gathered.flush()
    gathered.flush()
    assert numbers_of(groups)[2:] == [list(range(32, 40))]


def test_large_frames_go_two_mebibytes_together_or_alone():
    groups = []
    gathered = FrameGroups(setup_of(), groups.append, Clock())
    for frame in frames_of([(512, 512, 3)] * 4 + [(1024, 1024, 3)] * 2):
        gathered.add(frame)
    assert numbers_of(groups) == [[0, 1], [2, 3], [4], [5]]


def test_a_new_shape_begins_a_group():
    groups = []
    gathered = FrameGroups(setup_of(), groups.append, Clock())
    for frame in frames_of([(8, 4, 3)] * 2 + [(4, 8, 3)]):
        gathered.add(frame)
    gathered.flush()
    assert numbers_of(groups) == [[0, 1], [2]]


def test_who_decodes_slowly_sends_every_frame_at_once():
    clock, groups = Clock(), []
    gathered = FrameGroups(setup_of(), groups.append, clock)
    for frame in frames_of([(8, 8, 3)] * 10):
        clock.seconds += GROUP_SECONDS + 0.001
        gathered.add(frame)
        assert groups[-1] == [frame]


def test_a_frame_waits_no_longer_than_the_next_one_takes_and_50_milliseconds():
    clock, sent_at = Clock(), {}
    gathered = FrameGroups(
        setup_of(), lambda group: sent_at.update({frame.number: clock.seconds for frame in group}), clock
    )
    came_at = []
    for frame in frames_of([(8, 8, 3)] * 50):
        clock.seconds += 0.007
        came_at.append(clock.seconds)
        gathered.add(frame)
    waits = [sent_at[number] - came_at[number] for number in sorted(sent_at)]
    assert len(waits) > 40
    assert max(waits) <= GROUP_SECONDS + 0.007
    assert max(later - sooner for sooner, later in pairwise(sorted(set(sent_at.values())))) <= GROUP_SECONDS + 0.007

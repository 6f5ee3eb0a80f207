"""What of a batch counts: each condition by itself."""

import pytest
import torch
from contracts.task_contract import truth

from vfz.temporal.target_batch import valid_boxes, valid_depth, valid_labels, valid_points, valid_poses


def batch(changed=None, at=()):
    """Everything valid but one entry of one mask."""
    masks = {
        "boxes_valid": torch.ones(1, 2, 4, dtype=torch.bool),
        "objects_valid": torch.ones(1, 2, dtype=torch.bool),
        "points_valid": torch.ones(1, 2, 4, dtype=torch.bool),
        "queries_valid": torch.ones(1, 2, dtype=torch.bool),
        "depth_valid": torch.ones(1, 4, 2, 2, dtype=torch.bool),
        "pose_valid": torch.ones(1, 4, dtype=torch.bool),
        "frame_mask": torch.ones(1, 4, dtype=torch.bool),
    }
    if changed:
        masks[changed][at] = False
    query_frame = torch.tensor([[-1, -1]])  # from before the clip, so that no frame is the query's
    return truth(num_clips=1, num_frames=4, query_frame=query_frame, **masks)


@pytest.mark.parametrize(
    ("valid", "changed", "at"),
    [
        (valid_boxes, "boxes_valid", (0, 1, 2)),
        (valid_boxes, "objects_valid", (0, 1)),
        (valid_points, "points_valid", (0, 1, 2)),
        (valid_points, "queries_valid", (0, 1)),
        (valid_depth, "depth_valid", (0, 1, 0, 1)),
        (valid_poses, "pose_valid", (0, 1)),
    ],
)
def test_what_a_mask_takes_out_does_not_count_and_all_else_does(valid, changed, at):
    assert valid(batch()).all()
    expected = torch.ones_like(valid(batch()))
    expected[at] = False
    assert torch.equal(valid(batch(changed, at)), expected)


@pytest.mark.parametrize("valid", [valid_boxes, valid_points])
def test_nothing_counts_at_a_repeated_frame(valid):
    expected = torch.ones(1, 2, 4, dtype=torch.bool)
    expected[:, :, 3] = False
    assert torch.equal(valid(batch("frame_mask", (0, 3))), expected)


@pytest.mark.parametrize("valid", [valid_depth, valid_poses])
def test_no_depth_and_no_pose_counts_at_a_repeated_frame(valid):
    result = valid(batch("frame_mask", (0, 3)))
    assert result[:, :3].all()
    assert not result[:, 3].any()


def test_points_count_after_their_own_query_frame():
    known = torch.ones(1, 2, 4, dtype=torch.bool)
    points = truth(
        num_clips=1,
        num_frames=4,
        points_valid=known,
        queries_valid=known[..., 0],
        query_frame=torch.tensor([[0, 2]]),
    )
    assert valid_points(points).tolist() == [[[False, True, True, True], [False, False, False, True]]]


def test_a_clip_counts_where_it_has_a_class():
    assert valid_labels(truth(labels=[0, -1, 3])).tolist() == [True, False, True]

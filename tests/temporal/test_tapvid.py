"""Point metrics as TAP-Vid defines them: worked by hand, and against the definition written out point by point."""

import math

import pytest
import torch
from contracts.task_contract import truth

from vfz.temporal.tapvid import THRESHOLD_PIXELS, PointsMetrics

CENTRE = [0.5, 0.5]


def batch_of(visible, *, query_frame=None, valid=None, xy=None):
    """Clips whose points stay at the centre: `visible` [B, Q, T]."""
    visible = torch.tensor(visible)
    num_clips, num_points, num_frames = visible.shape
    every = torch.ones(num_clips, num_points, dtype=torch.bool)
    return truth(
        num_clips=num_clips,
        num_frames=num_frames,
        points_xy=torch.tensor(CENTRE).expand(*visible.shape, 2) if xy is None else xy,
        points_visible=visible,
        points_valid=torch.ones_like(visible) if valid is None else torch.tensor(valid),
        query_frame=torch.zeros(num_clips, num_points, dtype=torch.int64) if query_frame is None else query_frame,
        queries_valid=every,
    )


def outputs_of(pixels, visible):
    """Predictions so many pixels right of the centre, called visible or not."""
    pixels = torch.tensor(pixels, dtype=torch.float32)
    xy = torch.stack([0.5 + pixels / 256, torch.full_like(pixels, 0.5)], dim=-1)
    return {"xy": xy, "visibility_logit": torch.where(torch.tensor(visible), 1.0, -1.0)}


def measure(*updates):
    metrics = PointsMetrics()
    for outputs, batch in updates:
        metrics.update(outputs, batch)
    return metrics.compute()


def test_a_track_worked_by_hand():
    # frame 0 is the query and is not counted; then: 3 px off and seen, 0 px off but called hidden, hidden and called
    # visible, hidden and called hidden
    batch = batch_of([[[True, True, True, False, False]]])
    result = measure((outputs_of([[[50, 3, 0, 0, 0]]], [[[False, True, False, True, False]]]), batch))
    assert result["occlusion_accuracy"] == 2 / 4
    assert [result[f"pts_within_{d}"] for d in THRESHOLD_PIXELS] == [1 / 2, 1 / 2, 1, 1, 1]
    # true positives: the first from 4 px on; in all 2 visible points, false positives the hidden one, and below 4 px
    # the first, which is then missed as well
    assert [result[f"jaccard_{d}"] for d in THRESHOLD_PIXELS] == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert result["average_jaccard"] == pytest.approx(1 / 5)
    assert result["average_pts_within"] == pytest.approx(4 / 5)
    assert (result["num_clips"], result["num_points"]) == (1, 1)


def test_a_distance_equal_to_a_threshold_is_not_within_it():
    result = measure((outputs_of([[[0, 4]]], [[[True, True]]]), batch_of([[[True, True]]])))
    assert (result["pts_within_4"], result["pts_within_8"]) == (0, 1)


def test_frames_up_to_the_query_frame_are_not_counted():
    batch = batch_of([[[True] * 4]], query_frame=torch.tensor([[2]]))
    result = measure((outputs_of([[[90, 90, 90, 0]]], [[[False, False, False, True]]]), batch))
    assert (result["average_jaccard"], result["occlusion_accuracy"]) == (1, 1)


def test_clips_are_averaged_and_points_within_a_clip_are_pooled():
    # clip 0: four visible points, one of them right; clip 1: one visible point, right
    batch = batch_of([[[True, True], [True, True], [True, True], [True, True]]])
    wrong = outputs_of([[[0, 0], [0, 99], [0, 99], [0, 99]]], [[[True, True]] * 4])
    right = outputs_of([[[0, 0]]], [[[True, True]]])
    result = measure((wrong, batch), (right, batch_of([[[True, True]]])))
    assert result["average_pts_within"] == pytest.approx((1 / 4 + 1) / 2)
    assert result["average_jaccard"] == pytest.approx((1 / 7 + 1) / 2)
    assert (result["num_clips"], result["num_points"]) == (2, 5)


def test_a_clip_without_a_visible_point_has_no_position_accuracy():
    hidden, seen = batch_of([[[True, False]]]), batch_of([[[True, True]]])
    result = measure(
        (outputs_of([[[0, 0]]], [[[True, False]]]), hidden), (outputs_of([[[0, 0]]], [[[True, True]]]), seen)
    )
    assert (result["average_jaccard"], result["average_pts_within"], result["occlusion_accuracy"]) == (1, 1, 1)
    called_visible = measure((outputs_of([[[0, 0]]], [[[True, True]]]), hidden))
    assert (called_visible["average_jaccard"], called_visible["occlusion_accuracy"]) == (0, 0)
    assert math.isnan(called_visible["average_pts_within"])


def by_definition(pixels, called, visible, counted):
    """One clip's numbers, point by point and frame by frame: [Q, T] lists."""
    rows = [row for rows in zip(pixels, called, visible, counted, strict=True) for row in zip(*rows, strict=True)]
    rows = [(p, c, v) for p, c, v, counts in rows if counts]
    jaccard, within = [], []
    for threshold in THRESHOLD_PIXELS:
        true_positives = sum(v and c and p < threshold for p, c, v in rows)
        false_positives = sum(c and (not v or p >= threshold) for p, c, v in rows)
        false_negatives = sum(v and not (c and p < threshold) for p, c, v in rows)
        jaccard.append(true_positives / (true_positives + false_positives + false_negatives))
        within.append(sum(v and p < threshold for p, c, v in rows) / sum(v for p, c, v in rows))
    right = sum(c == v for p, c, v in rows) / len(rows)
    return sum(jaccard) / 5, sum(within) / 5, right


def test_random_tracks_agree_with_the_definition_written_out():
    source = torch.Generator().manual_seed(0)
    shape = (4, 6, 9)
    pixels = 20 * torch.rand(shape, generator=source)
    called, visible, valid = (torch.rand(shape, generator=source) < 0.7 for _ in range(3))
    query_frame = torch.randint(0, 5, shape[:2], generator=source)
    batch = batch_of(visible.tolist(), query_frame=query_frame, valid=valid.tolist())
    result = measure((outputs_of(pixels.tolist(), called.tolist()), batch))
    counted = valid & (torch.arange(9) > query_frame[..., None])
    clips = [by_definition(*(x[b].tolist() for x in (pixels, called, visible, counted))) for b in range(4)]
    names = ("average_jaccard", "average_pts_within", "occlusion_accuracy")
    assert [result[name] for name in names] == pytest.approx([sum(column) / 4 for column in zip(*clips, strict=True)])

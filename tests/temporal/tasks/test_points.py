"""Task `points`: the contract; loss, metrics, targets and the constant answer worked by hand.

The metrics are held, too, against TAP-Vid's definition written out point by point.
"""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.task_contract import DECODER, TaskContract, measure
from helpers.task_batches import (
    MIRRORED,
    NUM_CLIPS,
    NUM_FRAMES,
    NUM_THINGS,
    RIGHT_HALF,
    all_valid,
    mapped,
    padded,
    some,
    truth,
    uniform,
)

from vfz.temporal.tasks import build_task
from vfz.temporal.tasks.points import THRESHOLD_PIXELS, PointsMetrics, clip_points, points_loss, valid_points


class TestPoints(TaskContract):
    task = "points"
    readout_sizes: ClassVar[dict] = {**DECODER, "num_frames": NUM_FRAMES}
    perfect_metrics: ClassVar[dict] = {
        "average_jaccard": 1.0,
        "average_pts_within": 1.0,
        "occlusion_accuracy": 1.0,
        **{f"{name}_{d}": 1.0 for name in ("jaccard", "pts_within") for d in (1, 2, 4, 8, 16)},
    }
    masks = ("points_valid",)

    def batch(self):
        xy = uniform(NUM_CLIPS, NUM_THINGS, NUM_FRAMES, 2)
        return truth(
            frame_mask=padded(),
            points_xy=xy,
            points_visible=some(NUM_CLIPS, NUM_THINGS, NUM_FRAMES, seed=1),
            points_valid=some(NUM_CLIPS, NUM_THINGS, NUM_FRAMES),
            query_xy=xy[:, :, 0],
            query_frame=torch.arange(NUM_CLIPS * NUM_THINGS).reshape(NUM_CLIPS, NUM_THINGS) % 3,
            queries_valid=some(NUM_CLIPS, NUM_THINGS, seed=2),
        )

    def perfect(self, batch, protocol):
        visible = batch.targets["points_visible"]
        return {
            "xy": batch.targets["points_xy"].clone(),
            "visibility_logit": 40.0 * visible - 20.0,
            "uncertainty_logit": torch.full(visible.shape, -20.0),
        }

    def invalid(self, batch, protocol):
        return ~valid_points(batch)


def loss_of(error_pixels, *, visible=True, visibility=0.0, uncertainty=0.0):
    """The loss of one point that is predicted so many pixels to the right."""
    target = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    predicted = target + torch.tensor([error_pixels / 256, 0.0])
    logits = {"visibility_logit": visibility, "uncertainty_logit": uncertainty}
    loss = points_loss(
        predicted,
        **{name: torch.tensor([value], dtype=torch.float64) for name, value in logits.items()},
        target_xy=target,
        visible=torch.tensor([visible]),
        valid=torch.tensor([True]),
    )
    return float(loss)


@pytest.mark.parametrize(("pixels", "huber"), [(0, 0), (3, 4.5), (4, 8), (10, 4 * (10 - 2))])
def test_positions_carry_a_huber_loss_in_pixels(pixels, huber):
    assert loss_of(pixels) == pytest.approx(0.05 * huber + 2 * math.log(2))


def test_hidden_points_carry_the_loss_of_their_visibility_only():
    assert loss_of(50, visible=False) == pytest.approx(math.log(2))
    assert loss_of(50, visible=False, visibility=2.0, uncertainty=9.0) == pytest.approx(math.log(1 + math.exp(2)))


@pytest.mark.parametrize(("pixels", "uncertain"), [(5.9, False), (6.1, True)])
def test_a_position_is_uncertain_where_it_is_off_by_more_than_six_pixels(pixels, uncertain):
    surely_uncertain, surely_certain = loss_of(pixels, uncertainty=20.0), loss_of(pixels, uncertainty=-20.0)
    assert (surely_uncertain < surely_certain) == uncertain


def test_uncertainty_does_not_move_the_position():
    predicted = torch.tensor([[0.6, 0.5]], requires_grad=True)
    one = torch.tensor([True])
    arguments = {"target_xy": torch.tensor([[0.5, 0.5]]), "visible": one, "valid": one}
    gradients = []
    for uncertainty in (-5.0, 5.0):
        loss = points_loss(predicted, torch.zeros(1), torch.tensor([uncertainty]), **arguments)
        gradients.append(torch.autograd.grad(loss, predicted)[0])
    assert torch.equal(*gradients)


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


def test_a_track_worked_by_hand():
    # frame 0 is the query and is not counted; then: 3 px off and seen, 0 px off but called hidden, hidden and called
    # visible, hidden and called hidden
    batch = batch_of([[[True, True, True, False, False]]])
    result = measure(PointsMetrics(), (outputs_of([[[50, 3, 0, 0, 0]]], [[[False, True, False, True, False]]]), batch))
    assert result["occlusion_accuracy"] == 2 / 4
    assert [result[f"pts_within_{d}"] for d in THRESHOLD_PIXELS] == [1 / 2, 1 / 2, 1, 1, 1]
    # true positives: the first from 4 px on; in all 2 visible points, false positives the hidden one, and below 4 px
    # the first, which is then missed as well
    assert [result[f"jaccard_{d}"] for d in THRESHOLD_PIXELS] == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    assert result["average_jaccard"] == pytest.approx(1 / 5)
    assert result["average_pts_within"] == pytest.approx(4 / 5)
    assert (result["num_clips"], result["num_points"]) == (1, 1)


def test_a_distance_equal_to_a_threshold_is_not_within_it():
    result = measure(PointsMetrics(), (outputs_of([[[0, 4]]], [[[True, True]]]), batch_of([[[True, True]]])))
    assert (result["pts_within_4"], result["pts_within_8"]) == (0, 1)


def test_frames_up_to_the_query_frame_are_not_counted():
    batch = batch_of([[[True] * 4]], query_frame=torch.tensor([[2]]))
    result = measure(PointsMetrics(), (outputs_of([[[90, 90, 90, 0]]], [[[False, False, False, True]]]), batch))
    assert (result["average_jaccard"], result["occlusion_accuracy"]) == (1, 1)


def test_clips_are_averaged_and_points_within_a_clip_are_pooled():
    # clip 0: four visible points, one of them right; clip 1: one visible point, right
    batch = batch_of([[[True, True], [True, True], [True, True], [True, True]]])
    wrong = outputs_of([[[0, 0], [0, 99], [0, 99], [0, 99]]], [[[True, True]] * 4])
    right = outputs_of([[[0, 0]]], [[[True, True]]])
    result = measure(PointsMetrics(), (wrong, batch), (right, batch_of([[[True, True]]])))
    assert result["average_pts_within"] == pytest.approx((1 / 4 + 1) / 2)
    assert result["average_jaccard"] == pytest.approx((1 / 7 + 1) / 2)
    assert (result["num_clips"], result["num_points"]) == (2, 5)


def test_a_clip_without_a_visible_point_has_no_position_accuracy():
    hidden, seen = batch_of([[[True, False]]]), batch_of([[[True, True]]])
    result = measure(
        PointsMetrics(),
        (outputs_of([[[0, 0]]], [[[True, False]]]), hidden),
        (outputs_of([[[0, 0]]], [[[True, True]]]), seen),
    )
    assert (result["average_jaccard"], result["average_pts_within"], result["occlusion_accuracy"]) == (1, 1, 1)
    called_visible = measure(PointsMetrics(), (outputs_of([[[0, 0]]], [[[True, True]]]), hidden))
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
    result = measure(PointsMetrics(), (outputs_of(pixels.tolist(), called.tolist()), batch))
    counted = valid & (torch.arange(9) > query_frame[..., None])
    clips = [by_definition(*(x[b].tolist() for x in (pixels, called, visible, counted))) for b in range(4)]
    names = ("average_jaccard", "average_pts_within", "occlusion_accuracy")
    assert [result[name] for name in names] == pytest.approx([sum(column) / 4 for column in zip(*clips, strict=True)])


MASKS = {"points_valid": (2, 4), "queries_valid": (2,)}
BEFORE = torch.tensor([[-1, -1]])  # query frames before the clip, so that no frame is a query's


@pytest.mark.parametrize(("mask", "at"), [("points_valid", (0, 1, 2)), ("queries_valid", (0, 1))])
def test_what_a_mask_takes_out_does_not_count_and_all_else_does(mask, at):
    expected = torch.ones(1, 2, 4, dtype=torch.bool)
    assert torch.equal(valid_points(all_valid(MASKS, query_frame=BEFORE)), expected)
    expected[at] = False
    assert torch.equal(valid_points(all_valid(MASKS, but=mask, at=at, query_frame=BEFORE)), expected)


def test_nothing_counts_at_a_repeated_frame():
    expected = torch.ones(1, 2, 4, dtype=torch.bool)
    expected[:, :, 3] = False
    assert torch.equal(valid_points(all_valid(MASKS, but="frame_mask", at=(0, 3), query_frame=BEFORE)), expected)


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


def seen_as(visible, valid):
    visible, valid = torch.tensor(visible)[None], torch.tensor(valid)[None]
    num_points, num_frames = visible.shape[1:]
    return truth(
        num_clips=1,
        num_frames=num_frames,
        query_xy=torch.rand(1, num_points, 2),
        query_frame=torch.zeros(1, num_points, dtype=torch.int64),
        queries_valid=torch.ones(1, num_points, dtype=torch.bool),
        points_visible=visible,
        points_valid=valid,
    )


def test_the_constant_point_stays_and_is_seen_as_often_as_in_the_training_set():
    # of seven that count (not the first frame, not what is invalid) two are visible; one more of each is added
    training = [
        seen_as([[True, True, False, True]], [[True, True, True, False]]),
        seen_as([[True] + [False] * 5], [[True] * 6]),
        seen_as([[True, True]], [[True, False]]),
    ]
    predict = build_task("points").constant_predictor(training)
    batch = seen_as([[True, True], [True, True]], [[True, True], [True, True]])
    outputs = predict(batch)
    assert torch.equal(outputs["xy"], torch.stack([batch.targets["query_xy"]] * 2, dim=2))
    share = outputs["visibility_logit"].sigmoid()
    assert share.flatten().tolist() == pytest.approx([(1 + 1) / (7 + 2)] * 4)


def test_a_point_is_queried_where_it_is_first_visible_in_the_crop():
    points_xy = np.float32([[[0.4, 0.5]], [[0.6, 0.5]], [[0.75, 0.5]]])
    points = mapped(clip_points, RIGHT_HALF, points_xy=points_xy)
    np.testing.assert_allclose(points["points_xy"][0], [[-0.2, 0.5], [0.2, 0.5], [0.5, 0.5]], atol=1e-6)
    assert points["points_visible"].tolist() == [[False, True, True]]
    assert (points["query_frame"].tolist(), points["queries_valid"].tolist()) == ([1], [True])
    np.testing.assert_array_equal(points["query_xy"][0], points["points_xy"][0, 1])
    assert points["points_valid"].all()


def test_a_point_that_is_never_visible_is_no_query():
    points = mapped(clip_points, points_visible=np.zeros((3, 1), bool))
    assert not points["queries_valid"].any()
    assert not points["points_valid"].any()
    assert (points["query_frame"].tolist(), points["query_xy"].tolist()) == ([0], [[0, 0]])


def test_a_point_is_not_visible_in_a_repeated_frame():
    points = mapped(clip_points, MIRRORED, mask=(True, True, False))
    assert points["points_visible"].tolist() == points["points_valid"].tolist() == [[True, True, False]]
    np.testing.assert_allclose(points["points_xy"][0, 0], [0.25, 0.25])

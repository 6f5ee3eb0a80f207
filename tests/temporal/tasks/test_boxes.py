"""Task `boxes`: the contract; loss, metric, targets and the constant answer worked by hand."""

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
from vfz.temporal.tasks.boxes import BoxesMetrics, boxes_loss, clip_boxes, valid_boxes

ALL = torch.ones(1, dtype=torch.bool)


class TestBoxes(TaskContract):
    task = "boxes"
    readout_sizes: ClassVar[dict] = DECODER
    perfect_metrics: ClassVar[dict] = {"miou": 1.0}
    masks = ("boxes_valid",)

    def batch(self):
        boxes = torch.cat(
            [
                uniform(NUM_CLIPS, NUM_THINGS, NUM_FRAMES, 2, low=0.3, high=0.7),
                uniform(NUM_CLIPS, NUM_THINGS, NUM_FRAMES, 2, low=0.1, high=0.4, seed=1),
            ],
            dim=-1,
        )
        return truth(
            frame_mask=padded(),
            boxes_cxcywh=boxes,
            boxes_valid=some(NUM_CLIPS, NUM_THINGS, NUM_FRAMES),
            init_box_cxcywh=boxes[:, :, 0],
            objects_valid=some(NUM_CLIPS, NUM_THINGS, seed=1),
        )

    def perfect(self, batch, protocol):
        return batch.targets["boxes_cxcywh"].clone()

    def invalid(self, batch, protocol):
        return ~valid_boxes(batch)


def test_boxes_are_smooth_l1_and_half_of_giou():
    predicted = torch.tensor([[0.6, 0.5, 0.2, 0.2]])
    target = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    smooth_l1 = 0.5 * 0.1**2 / 4
    giou = 1 / 3  # the hull is covered by the union, so nothing is taken off the IoU
    assert float(boxes_loss(predicted, target, ALL)) == pytest.approx(smooth_l1 + 0.5 * (1 - giou), abs=1e-5)


def test_boxes_apart_are_pulled_together():
    predicted = torch.tensor([[0.9, 0.5, 0.1, 0.1]], requires_grad=True)
    boxes_loss(predicted, torch.tensor([[0.2, 0.5, 0.1, 0.1]]), ALL).backward()
    assert predicted.grad[0, 0] > 0.1  # a step down the gradient goes left


def test_a_box_turned_inside_out_is_pulled_back_to_a_size():
    predicted = torch.tensor([[0.5, 0.5, -0.3, -0.3]], requires_grad=True)
    boxes_loss(predicted, torch.tensor([[0.5, 0.5, 0.2, 0.2]]), ALL).backward()
    assert (predicted.grad[0, 2:] < 0).all()


def test_a_box_far_beyond_the_frame_has_a_finite_loss_that_pulls_it_back():
    predicted = torch.tensor([[0.5, 0.5, 1e25, 1e25]], requires_grad=True)
    loss = boxes_loss(predicted, torch.tensor([[0.5, 0.5, 0.2, 0.2]]), ALL)
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[0, 2:] > 0).all()


def batch_of(boxes, valid):
    boxes = torch.tensor(boxes)[None, None]
    return truth(
        num_clips=1,
        num_frames=boxes.shape[2],
        boxes_cxcywh=boxes,
        boxes_valid=torch.tensor(valid)[None, None],
        objects_valid=torch.ones(1, 1, dtype=torch.bool),
    )


def test_miou_is_a_mean_over_the_valid_boxes_after_the_first_frame():
    box, wide = [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]
    predicted = torch.tensor([wide, wide, box, [0.6, 0.5, 0.2, 0.2]])[None, None]
    batch = batch_of([box] * 4, [True, True, False, True])
    result = measure(BoxesMetrics(), (predicted, batch))
    assert result == {"miou": pytest.approx((1 / 4 + 1 / 3) / 2), "num_boxes": 2, "num_clips": 1}


def test_every_box_weighs_the_same_whatever_its_batch():
    box, far = [0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]
    long = batch_of([box] * 4, [True] * 4)
    short = batch_of([box] * 2, [True] * 2)
    right = torch.tensor([box] * 4)[None, None]
    wrong = torch.tensor([far] * 2)[None, None]
    assert measure(BoxesMetrics(), (right, long), (wrong, short))["miou"] == pytest.approx(3 / 4)


MASKS = {"boxes_valid": (2, 4), "objects_valid": (2,)}


@pytest.mark.parametrize(("mask", "at"), [("boxes_valid", (0, 1, 2)), ("objects_valid", (0, 1))])
def test_what_a_mask_takes_out_does_not_count_and_all_else_does(mask, at):
    expected = torch.ones(1, 2, 4, dtype=torch.bool)
    assert torch.equal(valid_boxes(all_valid(MASKS)), expected)
    expected[at] = False
    assert torch.equal(valid_boxes(all_valid(MASKS, but=mask, at=at)), expected)


def test_nothing_counts_at_a_repeated_frame():
    expected = torch.ones(1, 2, 4, dtype=torch.bool)
    expected[:, :, 3] = False
    assert torch.equal(valid_boxes(all_valid(MASKS, but="frame_mask", at=(0, 3))), expected)


def test_the_constant_box_stays_where_it_was_given():
    init = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.1, 0.1]]])
    boxes = build_task("boxes").constant_predictor([])(truth(num_clips=1, num_frames=3, init_box_cxcywh=init))
    assert torch.equal(boxes, torch.stack([init] * 3, dim=2))


def test_a_box_is_clipped_to_the_crop_and_normalised_to_it():
    boxes = mapped(clip_boxes, RIGHT_HALF)
    np.testing.assert_allclose(boxes["boxes_cxcywh"], np.tile([0.125, 0.25, 0.25, 0.5], (1, 3, 1)))
    assert boxes["boxes_valid"].all()
    assert boxes["objects_valid"].all()
    np.testing.assert_array_equal(boxes["init_box_cxcywh"], boxes["boxes_cxcywh"][:, 0])


def test_a_mirrored_box_keeps_its_size_and_changes_sides():
    boxes = mapped(clip_boxes, MIRRORED, boxes_cxcywh=np.tile(np.float32([0.2, 0.25, 0.1, 0.5]), (3, 1, 1)))
    np.testing.assert_allclose(boxes["boxes_cxcywh"][0, 0], [0.8, 0.25, 0.1, 0.5], rtol=1e-6)


def test_a_box_is_invalid_where_it_is_hidden_gone_from_the_crop_or_its_frame_is_repeated():
    boxes_cxcywh = np.float32([[[0.9, 0.5, 0.1, 0.2]], [[0.4, 0.5, 0.2, 0.2]], [[0.9, 0.5, 0.1, 0.2]]])
    gone = mapped(clip_boxes, RIGHT_HALF, boxes_cxcywh=boxes_cxcywh)
    assert gone["boxes_valid"].tolist() == [[True, False, True]]
    assert (gone["boxes_cxcywh"][0, 1] == 0).all()
    hidden = mapped(clip_boxes, boxes_visible=np.array([[True], [True], [False]]))
    assert hidden["boxes_valid"].tolist() == [[True, True, False]]
    repeated = mapped(clip_boxes, frames=(1, 2, 2), mask=(True, True, False))
    assert repeated["boxes_valid"].tolist() == [[True, True, False]]


def test_an_object_without_a_box_in_the_first_frame_is_asked_for_in_no_frame():
    boxes = mapped(clip_boxes, boxes_visible=np.array([[False], [True], [True]]))
    assert not boxes["objects_valid"].any()
    assert not boxes["boxes_valid"].any()
    assert (boxes["init_box_cxcywh"] == 0).all()

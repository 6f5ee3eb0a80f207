"""Task `depth`: the contract; loss, metrics, targets and the constant answer worked by hand."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.task_contract import ATTENTION, UNSEEN_BY_SOFTMAX, TaskContract, measure
from helpers.task_batches import (
    NUM_CLIPS,
    NUM_FRAMES,
    RIGHT_HALF,
    WHOLE,
    all_valid,
    mapped,
    padded,
    some,
    truth,
    uniform,
)
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.regression import MeanAbsolutePercentageError

from vfz.pipeline.encoder.transforms import SeenCrop
from vfz.temporal.tasks import build_task
from vfz.temporal.tasks.depth import DepthMetrics, clip_depth, depth_loss, valid_depth

pytestmark = pytest.mark.quick


class TestDepth(TaskContract):
    task = "depth"
    readout_sizes: ClassVar[dict] = {**ATTENTION, "output_size": 8}
    unused = UNSEEN_BY_SOFTMAX
    perfect_metrics: ClassVar[dict] = {"abs_rel": 0.0, "delta1": 1.0}
    masks = ("depth_valid",)
    counted = ("num_frames", 6)

    def batch(self):
        shape = (NUM_CLIPS, NUM_FRAMES, 8, 8)
        valid = some(*shape)
        valid[0, 1] = False  # a frame without any depth
        return truth(frame_mask=padded(), depth_metres=uniform(*shape, low=0.5, high=9), depth_valid=valid)

    def perfect(self, batch, protocol):
        return batch.targets["depth_metres"].clone()

    def invalid(self, batch, protocol):
        return ~valid_depth(batch)


def loss_of(predicted, target):
    predicted, target = torch.tensor([[predicted]]), torch.tensor([[target]])
    return depth_loss(predicted, target, torch.ones_like(target, dtype=torch.bool))


def test_depth_is_l1_and_the_scale_invariant_error_of_the_logarithm():
    d1, d2 = math.log(2 / 1), math.log(3 / 4)
    expected = (1 + 1) / 2 + (d1**2 + d2**2) / 2 - 0.5 * ((d1 + d2) / 2) ** 2
    assert float(loss_of([2.0, 3.0], [1.0, 4.0])) == pytest.approx(expected)


def test_a_common_factor_costs_half_of_its_logarithm_squared():
    l1 = (1 + 4) / 2
    assert float(loss_of([2.0, 8.0], [1.0, 4.0])) == pytest.approx(l1 + 0.5 * math.log(2) ** 2)


def test_targets_beyond_ten_metres_are_ten_metres():
    assert float(loss_of([10.0, 5.0], [40.0, 5.0])) == 0


def test_every_frame_weighs_the_same_however_much_of_it_is_valid():
    predicted, target = torch.tensor([[[2.0, 1.0]], [[1.0, 3.0]]]), torch.ones(2, 1, 2)
    valid = torch.tensor([[[True, False]], [[True, True]]])
    first = 1 + 0.5 * math.log(2) ** 2
    second = 1 + math.log(3) ** 2 / 2 - 0.5 * (math.log(3) / 2) ** 2
    assert float(depth_loss(predicted, target, valid)) == pytest.approx((first + second) / 2)


@pytest.mark.parametrize("outside", [-3.0, 0.0, 25.0])
def test_a_depth_outside_the_range_is_pulled_back_into_it(outside):
    predicted = torch.tensor([[outside]], requires_grad=True)
    depth_loss(predicted, torch.tensor([[2.0]]), torch.tensor([[True]])).backward()
    assert predicted.grad.sign().item() == (1 if outside > 2 else -1)


def generator():
    return torch.Generator().manual_seed(0)


def batch_of(target, valid=None):
    target = torch.as_tensor(target, dtype=torch.float32)
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    return truth(num_clips=target.shape[0], num_frames=target.shape[1], depth_metres=target, depth_valid=valid)


def test_frames_are_averaged_whatever_the_number_of_their_pixels():
    predicted = torch.tensor([[[[1.5, 2.0]], [[4.0, 3.0]]]])
    batch = batch_of([[[[1.0, 2.0]], [[5.0, 9.0]]]], [[[[True, True]], [[True, False]]]])
    result = measure(DepthMetrics(), (predicted, batch))
    assert result == {
        "abs_rel": pytest.approx(((0.5 + 0) / 2 + 1 / 5) / 2),
        "delta1": pytest.approx((1 / 2 + 0) / 2),  # 5 / 4 is not less than 1.25
        "num_frames": 2,
        "num_pixels": 3,
    }


def test_a_negative_depth_is_far_off_rather_than_close():
    result = measure(DepthMetrics(), (torch.full((1, 1, 1, 2), -1.0), batch_of([[[[1.0, 1.0]]]])))
    assert result["delta1"] == 0
    assert result["abs_rel"] == pytest.approx(0.999)


def test_true_depths_out_of_range_are_not_counted():
    result = measure(DepthMetrics(), (torch.ones(1, 1, 1, 2), batch_of([[[[1.0, 10.5]]]])))
    assert result == {"abs_rel": 0, "delta1": 1, "num_frames": 1, "num_pixels": 1}


def test_abs_rel_agrees_with_torchmetrics_where_all_is_valid():
    target = 0.5 + 9 * torch.rand(3, 4, 5, 6, generator=generator())
    predicted = (target * (0.5 + torch.rand(3, 4, 5, 6, generator=generator()))).clamp(max=10)
    expected = MeanAbsolutePercentageError()(predicted, target)
    assert measure(DepthMetrics(), (predicted, batch_of(target)))["abs_rel"] == pytest.approx(float(expected), rel=1e-5)


MASKS = {"depth_valid": (4, 2, 2)}


def test_what_the_mask_takes_out_does_not_count_and_all_else_does():
    expected = torch.ones(1, 4, 2, 2, dtype=torch.bool)
    assert torch.equal(valid_depth(all_valid(MASKS)), expected)
    expected[0, 1, 0, 1] = False
    assert torch.equal(valid_depth(all_valid(MASKS, but="depth_valid", at=(0, 1, 0, 1))), expected)


def test_no_depth_counts_at_a_repeated_frame():
    expected = torch.ones(1, 4, 2, 2, dtype=torch.bool)
    expected[:, 3] = False
    assert torch.equal(valid_depth(all_valid(MASKS, but="frame_mask", at=(0, 3))), expected)


def depth_batch(target, valid, mask=None):
    return truth(
        num_clips=target.shape[0],
        num_frames=target.shape[1],
        frame_mask=mask,
        depth_metres=target,
        depth_valid=valid,
    )


def test_the_constant_depth_is_a_map_fitted_to_what_is_valid():
    target = torch.tensor([[[[2.0, 9.0, 7.0]], [[2.1, 4.0, 7.0]], [[6.0, 4.0, 7.0]], [[0.5, 5.0, 7.0]]]])
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, :, 0, 2] = False  # a pixel that is never known: the median of the others
    valid[0, 0, 0, 1] = False
    batch = depth_batch(target, valid, torch.tensor([[True, True, True, False]]))
    depth = build_task("depth").constant_predictor([batch])(batch)
    # 1 / 2 of 1 / 2 + 1 / 2.1 + 1 / 6 in all: less than half of it, and 2.1 passes it
    torch.testing.assert_close(depth, torch.tensor([2.1, 4.0, 2.1]).expand(1, 4, 1, 3))


def test_no_other_constant_depth_has_a_lower_abs_rel():
    target = 0.2 + 9 * torch.rand(4, 5, 1, 1, generator=torch.Generator().manual_seed(0))
    batch = depth_batch(target, torch.ones_like(target, dtype=torch.bool))
    task = build_task("depth")

    def abs_rel(depth):
        metrics = task.new_metrics()
        metrics.update(depth, batch)
        return metrics.compute()["abs_rel"]

    others = [abs_rel(torch.full_like(target, metres)) for metres in torch.linspace(0.05, 10, 500).tolist()]
    assert abs_rel(task.constant_predictor([batch])(batch)) <= min(others)


@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        (WHOLE, [[1, 3], [5, 7]]),
        (RIGHT_HALF, [[3, 4], [7, 8]]),
        (SeenCrop(x0=0.5, y0=0, x1=1, y1=1, mirrored=True), [[4, 3], [8, 7]]),
    ],
)
def test_depth_is_what_was_measured_at_the_centres_of_the_pixels(crop, expected):
    # the centre of an output pixel of the whole frame lies between two measured ones: the right one counts
    depth = mapped(clip_depth, crop, 2, mask=(True, True, False))
    expected = [[2, 4], [6, 8]] if crop is WHOLE else expected
    np.testing.assert_array_equal(depth["depth_metres"][0], expected)
    assert depth["depth_valid"].all(axis=(1, 2)).tolist() == [True, True, False]
    assert not depth["depth_valid"][2].any()


@given(st.integers(1, 9), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.6, 1), st.booleans())
def test_depths_are_never_mixed(size, x0, y0, x1, y1, mirrored):
    depth = mapped(clip_depth, SeenCrop(x0=x0, y0=y0, x1=x1, y1=y1, mirrored=mirrored), size)
    assert set(np.unique(depth["depth_metres"])) <= set(range(1, 9))

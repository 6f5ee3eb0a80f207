"""What the predictors that ignore the video answer, worked by hand."""

import math

import pytest
import torch
from contracts.task_contract import truth

from vfz.temporal.geometry import rotation_from_6d
from vfz.temporal.tasks import build_task


def test_the_constant_class_is_the_commonest_of_the_training_set():
    predict = build_task("classify", num_classes=4, protocol="clip").constant_predictor(
        [truth(labels=[1, 2, 2]), truth(labels=[2, 1, -1])]
    )
    logits = predict(truth(labels=[0]))
    assert logits.softmax(-1)[0].tolist() == pytest.approx([1 / 9, 3 / 9, 4 / 9, 1 / 9])


def test_the_constant_box_stays_where_it_was_given():
    init = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.1, 0.1]]])
    boxes = build_task("boxes").constant_predictor([])(truth(num_clips=1, num_frames=3, init_box_cxcywh=init))
    assert torch.equal(boxes, torch.stack([init] * 3, dim=2))


def points(visible, valid):
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
        points([[True, True, False, True]], [[True, True, True, False]]),
        points([[True] + [False] * 5], [[True] * 6]),
        points([[True, True]], [[True, False]]),
    ]
    predict = build_task("points").constant_predictor(training)
    batch = points([[True, True], [True, True]], [[True, True], [True, True]])
    outputs = predict(batch)
    assert torch.equal(outputs["xy"], torch.stack([batch.targets["query_xy"]] * 2, dim=2))
    share = outputs["visibility_logit"].sigmoid()
    assert share.flatten().tolist() == pytest.approx([(1 + 1) / (7 + 2)] * 4)


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


def test_the_constant_pose_is_the_mean_step_of_the_training_set():
    def about_z(degrees):
        angle = math.radians(degrees)
        return rotation_from_6d(
            torch.tensor([math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0])
        )

    batch = truth(
        num_clips=1,
        num_frames=3,
        translation_metres=torch.tensor([[[9.0, 9, 9], [1, 0, 0], [3, 2, 0]]]),
        rotation=torch.stack([about_z(99), about_z(10), about_z(30)])[None],
        pose_valid=torch.tensor([[False, True, True]]),
    )
    pose = build_task("pose").constant_predictor([batch])(batch)
    assert pose.shape == (1, 3, 9)
    assert pose[0, 1, :3].tolist() == pytest.approx([2, 1, 0])
    torch.testing.assert_close(rotation_from_6d(pose[0, 1, 3:]), about_z(20))

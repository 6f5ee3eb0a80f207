"""Metrics worked by hand, and against torchmetrics. What holds of all of them is in `contracts/task_contract.py`."""

import math

import pytest
import torch
from contracts.task_contract import truth
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsolutePercentageError

from vfz.temporal.geometry import rotation_from_6d
from vfz.temporal.metrics import BoxesMetrics, ClassifyMetrics, DepthMetrics, PoseMetrics


def measure(metrics, *updates):
    for outputs, batch in updates:
        metrics.update(outputs, batch)
    return metrics.compute()


def generator():
    return torch.Generator().manual_seed(0)


class TestClasses:
    def test_top1_and_top5_worked_by_hand(self):
        logits = torch.arange(8.0).expand(4, 8)  # the best are 7, 6, 5, 4, 3
        result = measure(ClassifyMetrics(), (logits, truth(labels=[7, 3, 2, -1])))
        assert result == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3), "num_clips": 3}

    def test_with_fewer_than_five_classes_top5_is_always_right(self):
        assert measure(ClassifyMetrics(), (torch.zeros(2, 3), truth(labels=[0, 2])))["top5"] == 1

    def test_frames_answer_by_their_last(self):
        logits = torch.zeros(1, 3, 4)
        logits[0, :2, 1] = 9
        logits[0, 2, 2] = 1
        assert measure(ClassifyMetrics(), (logits, truth(labels=[2])))["top1"] == 1

    @pytest.mark.parametrize(("name", "top_k"), [("top1", 1), ("top5", 5)])
    def test_it_agrees_with_torchmetrics_over_batches_of_different_sizes(self, name, top_k):
        ours, theirs = ClassifyMetrics(), MulticlassAccuracy(num_classes=20, top_k=top_k, average="micro")
        source = generator()
        for num_clips in (1, 30, 7):
            logits = torch.randn(num_clips, 20, generator=source)
            labels = torch.randint(20, (num_clips,), generator=source)
            ours.update(logits, truth(labels=labels))
            theirs.update(logits, labels)
        assert ours.compute()[name] == pytest.approx(float(theirs.compute()))


class TestBoxes:
    def batch(self, boxes, valid):
        boxes = torch.tensor(boxes)[None, None]
        return truth(
            num_clips=1,
            num_frames=boxes.shape[2],
            boxes_cxcywh=boxes,
            boxes_valid=torch.tensor(valid)[None, None],
            objects_valid=torch.ones(1, 1, dtype=torch.bool),
        )

    def test_miou_is_a_mean_over_the_valid_boxes_after_the_first_frame(self):
        box, wide = [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]
        predicted = torch.tensor([wide, wide, box, [0.6, 0.5, 0.2, 0.2]])[None, None]
        batch = self.batch([box] * 4, [True, True, False, True])
        result = measure(BoxesMetrics(), (predicted, batch))
        assert result == {"miou": pytest.approx((1 / 4 + 1 / 3) / 2), "num_boxes": 2, "num_clips": 1}

    def test_every_box_weighs_the_same_whatever_its_batch(self):
        box, far = [0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]
        long = self.batch([box] * 4, [True] * 4)
        short = self.batch([box] * 2, [True] * 2)
        right = torch.tensor([box] * 4)[None, None]
        wrong = torch.tensor([far] * 2)[None, None]
        assert measure(BoxesMetrics(), (right, long), (wrong, short))["miou"] == pytest.approx(3 / 4)


class TestDepth:
    def batch(self, target, valid=None):
        target = torch.as_tensor(target, dtype=torch.float32)
        valid = torch.ones_like(target, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
        return truth(num_clips=target.shape[0], num_frames=target.shape[1], depth_metres=target, depth_valid=valid)

    def test_frames_are_averaged_whatever_the_number_of_their_pixels(self):
        predicted = torch.tensor([[[[1.5, 2.0]], [[4.0, 3.0]]]])
        batch = self.batch([[[[1.0, 2.0]], [[5.0, 9.0]]]], [[[[True, True]], [[True, False]]]])
        result = measure(DepthMetrics(), (predicted, batch))
        assert result == {
            "abs_rel": pytest.approx(((0.5 + 0) / 2 + 1 / 5) / 2),
            "delta1": pytest.approx((1 / 2 + 0) / 2),  # 5 / 4 is not less than 1.25
            "num_frames": 2,
            "num_pixels": 3,
        }

    def test_a_negative_depth_is_far_off_rather_than_close(self):
        result = measure(DepthMetrics(), (torch.full((1, 1, 1, 2), -1.0), self.batch([[[[1.0, 1.0]]]])))
        assert result["delta1"] == 0
        assert result["abs_rel"] == pytest.approx(0.999)

    def test_true_depths_out_of_range_are_not_counted(self):
        result = measure(DepthMetrics(), (torch.ones(1, 1, 1, 2), self.batch([[[[1.0, 10.5]]]])))
        assert result == {"abs_rel": 0, "delta1": 1, "num_frames": 1, "num_pixels": 1}

    def test_abs_rel_agrees_with_torchmetrics_where_all_is_valid(self):
        target = 0.5 + 9 * torch.rand(3, 4, 5, 6, generator=generator())
        predicted = (target * (0.5 + torch.rand(3, 4, 5, 6, generator=generator()))).clamp(max=10)
        expected = MeanAbsolutePercentageError()(predicted, target)
        assert measure(DepthMetrics(), (predicted, self.batch(target)))["abs_rel"] == pytest.approx(
            float(expected), rel=1e-5
        )


class TestPose:
    def batch(self, translation, rotation, valid):
        return truth(
            num_clips=1,
            num_frames=len(valid),
            translation_metres=torch.tensor(translation)[None],
            rotation=rotation[None].float(),
            pose_valid=torch.tensor([valid]),
        )

    def about_z(self, degrees):
        angle = math.radians(degrees)
        return [math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0]

    def test_rpe_is_the_root_mean_square_over_valid_frames_with_the_mean_beside_it(self):
        still = [0.0, 0.0, 0.0]
        predicted = torch.tensor(
            [[9.0, 9, 9, *self.about_z(90)], [0.03, 0, 0.04, *self.about_z(1)], [0, 0, 0.01, *self.about_z(3)]]
        )[None]
        batch = self.batch([still] * 3, torch.eye(3).expand(3, 3, 3), [False, True, True])
        result = measure(PoseMetrics(), (predicted, batch))
        assert result == {
            "rpe_tr_mm": pytest.approx(math.sqrt((50**2 + 10**2) / 2), rel=1e-5),
            "rpe_rot_deg": pytest.approx(math.sqrt((1 + 9) / 2), rel=1e-5),
            "rpe_tr_mean_mm": pytest.approx(30, rel=1e-5),
            "rpe_rot_mean_deg": pytest.approx(2, rel=1e-5),
            "num_frames": 2,
        }

    def test_it_is_the_error_of_the_composed_pose(self):
        """E = inverse(T) T', with whole 4 x 4 matrices."""
        source = generator()
        translation, guess = torch.randn(2, 3, generator=source).unbind()
        rotation, turned = rotation_from_6d(torch.randn(2, 6, generator=source)).unbind()
        true, predicted = torch.eye(4).repeat(2, 1, 1).unbind()
        true[:3, :3], true[:3, 3], predicted[:3, :3], predicted[:3, 3] = rotation, translation, turned, guess
        error = torch.linalg.inv(true) @ predicted
        outputs = torch.cat([guess, turned[:, :2].mT.flatten()])[None, None]
        result = measure(PoseMetrics(), (outputs, self.batch([translation.tolist()], rotation[None], [True])))
        assert result["rpe_tr_mm"] == pytest.approx(1000 * float(error[:3, 3].norm()), rel=1e-4)
        angle = math.acos((float(error[:3, :3].trace()) - 1) / 2)
        assert result["rpe_rot_deg"] == pytest.approx(math.degrees(angle), rel=1e-4)

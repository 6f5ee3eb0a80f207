"""Every registered task keeps the contract."""

from typing import ClassVar

import pytest
import torch
from contracts.task_contract import (
    NUM_CLIPS,
    NUM_FRAMES,
    NUM_THINGS,
    TaskContract,
    padded,
    some,
    truth,
    uniform,
)

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.geometry import rotation_from_6d
from vfz.temporal.target_batch import valid_boxes, valid_depth, valid_points, valid_poses
from vfz.temporal.tasks import TASKS, build_task

NUM_CLASSES = 7
ATTENTION = {"readout_dim": 32, "num_heads": 4, "num_frames": NUM_FRAMES}
DECODER = {"readout_dim": 32, "num_heads": 4, "mlp_hidden": 32}
# A bias on the keys adds the same to every score of a head, and softmax does not see it.
UNSEEN_BY_SOFTMAX = ("key_proj.bias",)


class TestClassify(TaskContract):
    task = "classify"
    kwargs: ClassVar[dict] = {"num_classes": NUM_CLASSES}
    readout_sizes: ClassVar[dict] = {**ATTENTION, "num_classes": NUM_CLASSES}
    unused = UNSEEN_BY_SOFTMAX
    perfect_metrics: ClassVar[dict] = {"top1": 1.0, "top5": 1.0}

    @pytest.fixture(params=["streaming", "clip"])
    def protocol(self, request):
        return request.param

    def batch(self):
        return truth(labels=[0, -1, 3, 6, 3, 1], frame_mask=padded())

    def perfect(self, batch, protocol):
        logits = 20.0 * torch.nn.functional.one_hot(batch.labels_B.clamp(min=0), NUM_CLASSES)
        return logits[:, None].repeat(1, NUM_FRAMES, 1) if protocol == "streaming" else logits

    def invalid(self, batch, protocol):
        unlabelled = batch.labels_B < 0
        if protocol == "clip":
            return unlabelled
        mask = torch.ones(NUM_CLIPS, NUM_FRAMES, dtype=torch.bool)
        mask[:, -1] = unlabelled
        return mask

    def wrong(self, batch, protocol, seed=3):
        generator = torch.Generator().manual_seed(seed)
        perfect = self.perfect(batch, protocol)
        return torch.randn(perfect.shape, generator=generator).requires_grad_()


class TestSmoothedClassify(TestClassify):
    kwargs: ClassVar[dict] = {"num_classes": NUM_CLASSES, "label_smoothing": 0.1}
    minimum = None

    def perfect(self, batch, protocol):
        return super().perfect(batch, protocol) / 5  # with smoothing, certainty is not the least loss


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

    @pytest.fixture(params=["streaming", "clip"])
    def protocol(self, request):
        return request.param

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


class TestDepth(TaskContract):
    task = "depth"
    readout_sizes: ClassVar[dict] = {**ATTENTION, "output_size": 8}
    unused = UNSEEN_BY_SOFTMAX
    perfect_metrics: ClassVar[dict] = {"abs_rel": 0.0, "delta1": 1.0}
    masks = ("depth_valid",)

    @pytest.fixture(params=["streaming", "clip"])
    def protocol(self, request):
        return request.param

    def batch(self):
        shape = (NUM_CLIPS, NUM_FRAMES, 8, 8)
        valid = some(*shape)
        valid[0, 1] = False  # a frame without any depth
        return truth(frame_mask=padded(), depth_metres=uniform(*shape, low=0.5, high=9), depth_valid=valid)

    def perfect(self, batch, protocol):
        return batch.targets["depth_metres"].clone()

    def invalid(self, batch, protocol):
        return ~valid_depth(batch)


class TestPose(TaskContract):
    task = "pose"
    readout_sizes: ClassVar[dict] = {"readout_dim": 32, "mlp_hidden": 32}
    perfect_metrics: ClassVar[dict] = dict.fromkeys(
        ("rpe_tr_mm", "rpe_rot_deg", "rpe_tr_mean_mm", "rpe_rot_mean_deg"), 0.0
    )
    masks = ("pose_valid",)
    minimum = -3.0  # the first value of the learned scales' sum

    def batch(self):
        valid = some(NUM_CLIPS, NUM_FRAMES)
        valid[:, 0] = False
        return truth(
            frame_mask=padded(),
            translation_metres=uniform(NUM_CLIPS, NUM_FRAMES, 3, low=-1),
            rotation=rotation_from_6d(uniform(NUM_CLIPS, NUM_FRAMES, 6, low=-1, seed=1).double()).float(),
            pose_valid=valid,
        )

    def perfect(self, batch, protocol):
        columns = batch.targets["rotation"][..., :2].mT.flatten(-2)
        return torch.cat([batch.targets["translation_metres"], columns], dim=-1)

    def invalid(self, batch, protocol):
        return ~valid_poses(batch)

    def test_perfect_outputs_have_perfect_metrics(self, built, protocol):
        batch = self.batch()
        metrics = self.metrics_of(built, self.perfect(batch, protocol), batch)
        assert metrics["rpe_tr_mm"] == 0
        assert metrics["rpe_rot_deg"] < 1e-4  # Gram-Schmidt of float32 columns


def test_every_registered_task_is_held_to_the_contract():
    assert {cls.task for cls in TaskContract.__subclasses__()} == set(TASKS.names())


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown task 'box'; did you mean boxes"):
        build_task("box")


@pytest.mark.parametrize("name", ["boxes", "pose"])
def test_a_task_without_a_clip_protocol_says_so(name):
    with pytest.raises(UsageError, match=f"task {name} has no clip protocol; use streaming"):
        build_task(name, protocol="clip")


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown protocol 'clips'; did you mean clip"):
        build_task("depth", protocol="clips")


def test_label_smoothing_beyond_its_range_is_refused():
    with pytest.raises(UsageError, match=r"label smoothing is 1.5; it must be at least 0 and less than 1"):
        build_task("classify", num_classes=3, label_smoothing=1.5)


def test_only_the_last_frame_is_needed_where_only_it_is_used():
    assert build_task("classify", num_classes=3).last_frame_only
    assert not build_task("classify", protocol="clip", num_classes=3).last_frame_only
    assert not any(build_task(name).last_frame_only for name in ("boxes", "points", "depth", "pose"))

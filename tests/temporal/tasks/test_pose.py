"""Task `pose`: the contract; loss, metrics, targets and the constant answer worked by hand."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.task_contract import TaskContract, measure
from helpers.task_batches import NUM_CLIPS, NUM_FRAMES, all_valid, padded, some, truth, uniform, video
from hypothesis import given
from hypothesis import strategies as st

from vfz.temporal.tasks import build_task
from vfz.temporal.tasks.geometry import rotation_from_6d
from vfz.temporal.tasks.pose import PoseLoss, PoseMetrics, clip_pose, valid_poses

pytestmark = pytest.mark.quick

ALL = torch.ones(1, dtype=torch.bool)


class TestPose(TaskContract):
    task = "pose"
    readout_sizes: ClassVar[dict] = {"readout_dim": 32, "mlp_hidden": 32}
    perfect_metrics: ClassVar[dict] = dict.fromkeys(
        ("rpe_tr_mm", "rpe_rot_deg", "rpe_tr_mean_mm", "rpe_rot_mean_deg"), 0.0
    )
    masks = ("pose_valid",)
    counted = ("num_frames", 5)  # the first frame has no pose
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


def pose(translation, degrees):
    angle = math.radians(degrees)
    columns = [math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0]
    return torch.tensor([[*translation, *columns]], dtype=torch.float64)


def test_pose_balances_metres_and_radians_by_learned_scales():
    loss = PoseLoss().double()
    with torch.no_grad():
        loss.log_scales.copy_(torch.tensor([-1.0, 0.5]))
    value = loss(pose([0.3, 0, 0.4], 90), torch.zeros(1, 3), torch.eye(3)[None], ALL)
    turned = 2 * math.sin(math.radians(45))
    assert float(value.detach()) == pytest.approx(math.exp(1) * 0.5 - 1 + math.exp(-0.5) * turned + 0.5)


def test_the_learned_scales_settle_at_the_logarithms_of_the_errors():
    loss = PoseLoss()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss(pose([0.02, 0, 0], 5).float(), torch.zeros(1, 3), torch.eye(3)[None], ALL).backward()
        optimizer.step()
    expected = [math.log(0.02), math.log(2 * math.sin(math.radians(2.5)))]
    assert loss.log_scales.tolist() == pytest.approx(expected, abs=0.02)


def test_rotations_are_exact_under_autocast():
    loss = PoseLoss()
    predicted, truth = pose([0, 0, 0], 3).float(), pose([0, 0, 0], 2).float()
    rotation = torch.stack([F.pad(truth[0, 3:5], (0, 1)), F.pad(truth[0, 6:8], (0, 1)), torch.eye(3)[2]], dim=-1)
    exact = loss(predicted, torch.zeros(1, 3), rotation[None], ALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(predicted, torch.zeros(1, 3), rotation[None], ALL), exact)


def generator():
    return torch.Generator().manual_seed(0)


def batch_of(translation, rotation, valid):
    return truth(
        num_clips=1,
        num_frames=len(valid),
        translation_metres=torch.tensor(translation)[None],
        rotation=rotation[None].float(),
        pose_valid=torch.tensor([valid]),
    )


def about_z(degrees):
    angle = math.radians(degrees)
    return [math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0]


def test_rpe_is_the_root_mean_square_over_valid_frames_with_the_mean_beside_it():
    still = [0.0, 0.0, 0.0]
    predicted = torch.tensor([[9.0, 9, 9, *about_z(90)], [0.03, 0, 0.04, *about_z(1)], [0, 0, 0.01, *about_z(3)]])[None]
    batch = batch_of([still] * 3, torch.eye(3).expand(3, 3, 3), [False, True, True])
    result = measure(PoseMetrics(), (predicted, batch))
    assert result == {
        "rpe_tr_mm": pytest.approx(math.sqrt((50**2 + 10**2) / 2), rel=1e-5),
        "rpe_rot_deg": pytest.approx(math.sqrt((1 + 9) / 2), rel=1e-5),
        "rpe_tr_mean_mm": pytest.approx(30, rel=1e-5),
        "rpe_rot_mean_deg": pytest.approx(2, rel=1e-5),
        "num_frames": 2,
    }


def test_it_is_the_error_of_the_composed_pose():
    """E = inverse(T) T', with whole 4 x 4 matrices."""
    source = generator()
    translation, guess = torch.randn(2, 3, generator=source).unbind()
    rotation, turned = rotation_from_6d(torch.randn(2, 6, generator=source)).unbind()
    true, predicted = torch.eye(4).repeat(2, 1, 1).unbind()
    true[:3, :3], true[:3, 3], predicted[:3, :3], predicted[:3, 3] = rotation, translation, turned, guess
    error = torch.linalg.inv(true) @ predicted
    outputs = torch.cat([guess, turned[:, :2].mT.flatten()])[None, None]
    result = measure(PoseMetrics(), (outputs, batch_of([translation.tolist()], rotation[None], [True])))
    assert result["rpe_tr_mm"] == pytest.approx(1000 * float(error[:3, 3].norm()), rel=1e-4)
    angle = math.acos((float(error[:3, :3].trace()) - 1) / 2)
    assert result["rpe_rot_deg"] == pytest.approx(math.degrees(angle), rel=1e-4)


MASKS = {"pose_valid": (4,)}


def test_what_the_mask_takes_out_does_not_count_and_all_else_does():
    assert valid_poses(all_valid(MASKS)).tolist() == [[True, True, True, True]]
    assert valid_poses(all_valid(MASKS, but="pose_valid", at=(0, 1))).tolist() == [[True, False, True, True]]


def test_no_pose_counts_at_a_repeated_frame():
    assert valid_poses(all_valid(MASKS, but="frame_mask", at=(0, 3))).tolist() == [[True, True, True, False]]


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


def trajectory(num_frames, seed):
    """Poses [T,4,4] that turn and move at random."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    for pose in poses:
        turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        pose[:3, :3] = turn * np.sign(np.linalg.det(turn))
        pose[:3, 3] = rng.standard_normal(3)
    return poses.astype(np.float32)


def relative(poses, frames, *, mirrored=False):
    known = video(world_from_camera=poses)
    return clip_pose(known, np.array(frames), np.ones(len(frames), bool), mirrored=mirrored)


@given(seed=st.integers(0, 99), frames=st.lists(st.integers(0, 7), min_size=2, max_size=8).map(sorted))
def test_relative_poses_compose_to_the_trajectory(seed, frames):
    poses = trajectory(8, seed)
    found = relative(poses, frames)
    world = poses[frames[0]].astype(np.float64)
    for t in range(1, len(frames)):
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = found["rotation"][t], found["translation_metres"][t]
        world = world @ step
        np.testing.assert_allclose(world, poses[frames[t]], atol=1e-4)
    assert found["pose_valid"].tolist() == [False] + [True] * (len(frames) - 1)
    np.testing.assert_array_equal(found["rotation"][0], np.eye(3))


def test_a_camera_that_moves_forward_and_right_has_a_positive_translation():
    poses = np.tile(np.eye(4, dtype=np.float32), (3, 1, 1))
    poses[1, :3, 3] = [0.1, 0, 0.5]
    np.testing.assert_allclose(relative(poses, [0, 1])["translation_metres"][1], [0.1, 0, 0.5], rtol=1e-6)


def seen(points, pose):
    """Image coordinates of world points [n,3], principal point at 0."""
    camera = (points - pose[:3, 3]) @ pose[:3, :3]
    return camera[:, :2] / camera[:, 2:]


def test_the_pose_of_a_mirrored_view_explains_the_mirrored_pictures():
    # Points of the mirrored world, followed by the mirrored motion, are seen where the mirrored pictures show them.
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 4], [1, 1, 6], (20, 3))
    angle = 0.1
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    poses[1, :3, 3] = [0.2, -0.1, 0.3]
    found = relative(poses.astype(np.float32), [0, 1], mirrored=True)
    mirrored_pose = np.eye(4)
    mirrored_pose[:3, :3], mirrored_pose[:3, 3] = found["rotation"][1], found["translation_metres"][1]
    expected = seen(points, poses[1]) * [-1, 1]
    np.testing.assert_allclose(seen(points * [-1, 1, 1], mirrored_pose), expected, atol=1e-6)
    assert found["translation_metres"][1] == pytest.approx([-0.2, -0.1, 0.3])

"""Boxes and rotations: hand-worked cases, and numbers that no annotation would hold."""

import math

import pytest
import torch
from torchvision.ops import box_iou as torchvision_iou

from vfz.temporal.tasks.geometry import box_corners, box_iou, chordal_distance, rotation_angle, rotation_from_6d

pytestmark = pytest.mark.quick


def about_z(degrees):
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def test_corners_of_a_box():
    assert box_corners(torch.tensor([0.5, 0.4, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.2, 0.6, 0.6])


def test_a_negative_size_counts_as_zero():
    assert box_corners(torch.tensor([0.5, 0.4, -0.2, -1.0])).tolist() == pytest.approx([0.5, 0.4, 0.5, 0.4])


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        ([0.5, 0.5, 0.2, 0.2], 1.0),
        ([0.6, 0.5, 0.2, 0.2], 1 / 3),  # half of each overlaps: .02 / (.04 + .04 - .02)
        ([0.5, 0.5, 0.4, 0.4], 1 / 4),  # the one within the other
        ([0.7, 0.5, 0.2, 0.2], 0.0),  # side by side
        ([0.5, 0.5, -0.2, -0.2], 0.0),  # turned inside out: no area, not a square of it
    ],
)
def test_iou_of_boxes_worked_by_hand(other, iou):
    box = torch.tensor([0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    assert float(box_iou(box, torch.tensor(other, dtype=torch.float64))) == pytest.approx(iou, abs=1e-12)


def test_iou_agrees_with_torchvision():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 50, 4, generator=generator)
    expected = torchvision_iou(box_corners(a), box_corners(b)).diagonal()
    torch.testing.assert_close(box_iou(a, b), expected)


def test_two_empty_boxes_have_no_overlap_rather_than_nan():
    empty = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert float(box_iou(empty, empty)) == 0


def test_the_columns_of_a_rotation_give_it_back():
    rotation = about_z(30)
    columns = rotation[:, :2].mT.flatten()
    torch.testing.assert_close(rotation_from_6d(columns), rotation)
    torch.testing.assert_close(rotation_from_6d(columns * 5), rotation)


def test_any_six_numbers_give_a_rotation():
    rotation = rotation_from_6d(torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(40, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(40, dtype=torch.float64))


@pytest.mark.parametrize("columns", [[0.0] * 6, [1.0, 0, 0, 2.0, 0, 0]])
def test_six_numbers_that_span_no_plane_stay_finite_with_their_gradient(columns):
    six = torch.tensor(columns, requires_grad=True)
    rotation = rotation_from_6d(six)
    rotation.sum().backward()
    assert rotation.isfinite().all()
    assert six.grad.isfinite().all()


@pytest.mark.parametrize("degrees", [0, 1e-6, 0.01, 1, 45, 90, 179.9, 180])
def test_the_angle_between_rotations_is_exact_from_tiny_to_half_a_turn(degrees):
    angle = rotation_angle(about_z(10 + degrees), about_z(10))
    assert math.degrees(float(angle)) == pytest.approx(degrees, rel=1e-6, abs=1e-12)


def test_the_chordal_distance_is_the_angle_in_radians_for_small_angles():
    assert float(chordal_distance(about_z(2), about_z(0))) == pytest.approx(2 * math.sin(math.radians(1)), rel=1e-9)
    assert float(chordal_distance(about_z(2), about_z(0))) == pytest.approx(math.radians(2), rel=1e-3)


def test_equal_rotations_have_a_gradient_of_zero():
    rotation = about_z(20).requires_grad_()
    chordal_distance(rotation, about_z(20)).backward()
    assert (rotation.grad == 0).all()

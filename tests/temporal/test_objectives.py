"""Losses worked by hand. What holds of every task's loss is in `contracts/task_contract.py`."""

import math

import pytest
import torch
import torch.nn.functional as F

from vfz.temporal.objectives import PoseLoss, boxes_loss, classification_loss, depth_loss, points_loss

ALL = torch.ones((), dtype=torch.bool)


def test_cross_entropy_is_a_mean_over_the_labelled_clips():
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    loss = classification_loss(logits, torch.tensor([0, -1, 1]))
    assert float(loss) == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_label_smoothing_spreads_its_share_over_all_classes():
    logits = torch.tensor([[2.0, 0.0]])
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    loss = classification_loss(logits, torch.tensor([0]), label_smoothing=0.2)
    assert float(loss) == pytest.approx(0.9 * right + 0.1 * wrong)


def test_boxes_are_smooth_l1_and_half_of_giou():
    predicted = torch.tensor([[0.6, 0.5, 0.2, 0.2]])
    target = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    smooth_l1 = 0.5 * 0.1**2 / 4
    giou = 1 / 3  # the hull is covered by the union, so nothing is taken off the IoU
    assert float(boxes_loss(predicted, target, ALL[None])) == pytest.approx(smooth_l1 + 0.5 * (1 - giou), abs=1e-5)


def test_boxes_apart_are_pulled_together():
    predicted = torch.tensor([[0.9, 0.5, 0.1, 0.1]], requires_grad=True)
    boxes_loss(predicted, torch.tensor([[0.2, 0.5, 0.1, 0.1]]), ALL[None]).backward()
    assert predicted.grad[0, 0] > 0.1  # a step down the gradient goes left


def test_a_box_turned_inside_out_is_pulled_back_to_a_size():
    predicted = torch.tensor([[0.5, 0.5, -0.3, -0.3]], requires_grad=True)
    boxes_loss(predicted, torch.tensor([[0.5, 0.5, 0.2, 0.2]]), ALL[None]).backward()
    assert (predicted.grad[0, 2:] < 0).all()


def test_a_box_far_beyond_the_frame_has_a_finite_loss_that_pulls_it_back():
    predicted = torch.tensor([[0.5, 0.5, 1e25, 1e25]], requires_grad=True)
    loss = boxes_loss(predicted, torch.tensor([[0.5, 0.5, 0.2, 0.2]]), ALL[None])
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[0, 2:] > 0).all()


def points(error_pixels, *, visible=True, visibility=0.0, uncertainty=0.0):
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
    assert points(pixels) == pytest.approx(0.05 * huber + 2 * math.log(2))


def test_hidden_points_carry_the_loss_of_their_visibility_only():
    assert points(50, visible=False) == pytest.approx(math.log(2))
    assert points(50, visible=False, visibility=2.0, uncertainty=9.0) == pytest.approx(math.log(1 + math.exp(2)))


@pytest.mark.parametrize(("pixels", "uncertain"), [(5.9, False), (6.1, True)])
def test_a_position_is_uncertain_where_it_is_off_by_more_than_six_pixels(pixels, uncertain):
    surely_uncertain, surely_certain = points(pixels, uncertainty=20.0), points(pixels, uncertainty=-20.0)
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


def depth(predicted, target):
    predicted, target = torch.tensor([[predicted]]), torch.tensor([[target]])
    return depth_loss(predicted, target, torch.ones_like(target, dtype=torch.bool))


def test_depth_is_l1_and_the_scale_invariant_error_of_the_logarithm():
    d1, d2 = math.log(2 / 1), math.log(3 / 4)
    expected = (1 + 1) / 2 + (d1**2 + d2**2) / 2 - 0.5 * ((d1 + d2) / 2) ** 2
    assert float(depth([2.0, 3.0], [1.0, 4.0])) == pytest.approx(expected)


def test_a_common_factor_costs_half_of_its_logarithm_squared():
    l1 = (1 + 4) / 2
    assert float(depth([2.0, 8.0], [1.0, 4.0])) == pytest.approx(l1 + 0.5 * math.log(2) ** 2)


def test_targets_beyond_ten_metres_are_ten_metres():
    assert float(depth([10.0, 5.0], [40.0, 5.0])) == 0


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


def pose(translation, degrees):
    angle = math.radians(degrees)
    columns = [math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0]
    return torch.tensor([[*translation, *columns]], dtype=torch.float64)


def test_pose_balances_metres_and_radians_by_learned_scales():
    loss = PoseLoss().double()
    with torch.no_grad():
        loss.log_scales.copy_(torch.tensor([-1.0, 0.5]))
    value = loss(pose([0.3, 0, 0.4], 90), torch.zeros(1, 3), torch.eye(3)[None], ALL[None])
    turned = 2 * math.sin(math.radians(45))
    assert float(value.detach()) == pytest.approx(math.exp(1) * 0.5 - 1 + math.exp(-0.5) * turned + 0.5)


def test_the_learned_scales_settle_at_the_logarithms_of_the_errors():
    loss = PoseLoss()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss(pose([0.02, 0, 0], 5).float(), torch.zeros(1, 3), torch.eye(3)[None], ALL[None]).backward()
        optimizer.step()
    expected = [math.log(0.02), math.log(2 * math.sin(math.radians(2.5)))]
    assert loss.log_scales.tolist() == pytest.approx(expected, abs=0.02)


def test_rotations_are_exact_under_autocast():
    loss = PoseLoss()
    predicted, truth = pose([0, 0, 0], 3).float(), pose([0, 0, 0], 2).float()
    rotation = torch.stack([F.pad(truth[0, 3:5], (0, 1)), F.pad(truth[0, 6:8], (0, 1)), torch.eye(3)[2]], dim=-1)
    exact = loss(predicted, torch.zeros(1, 3), rotation[None], ALL[None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(predicted, torch.zeros(1, 3), rotation[None], ALL[None]), exact)

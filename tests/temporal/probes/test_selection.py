"""What is held out, how a setting is chosen, and which few videos are taken."""

import pytest
import torch

from vfz.pipeline.errors import UsageError
from vfz.temporal.probes.selection import best_setting, few_videos, fold_masks, hold_out

pytestmark = pytest.mark.quick

LABELS_V = torch.tensor([0] * 50 + [1] * 20 + [2] * 3 + [3])


def counts(videos_V):
    return [int((LABELS_V[videos_V] == label).sum()) for label in range(4)]


def test_the_held_out_part_has_a_tenth_of_every_class_and_leaves_one():
    held_V = hold_out(LABELS_V, seed=0)
    assert counts(held_V) == [5, 2, 1, 0]
    assert counts(hold_out(LABELS_V, seed=0, fraction=0.99)) == [49, 19, 2, 0]
    assert torch.equal(held_V, hold_out(LABELS_V, seed=0))
    assert not torch.equal(held_V, hold_out(LABELS_V, seed=1))


def test_folds_hold_every_video_out_once_and_spread_classes_evenly():
    masks = torch.stack(fold_masks(LABELS_V, seed=0, num_folds=5))
    assert (masks.sum(dim=0) == 1).all()
    assert all(counts(mask)[:2] == [10, 4] for mask in masks)
    assert sorted(int(mask.sum()) for mask in masks) == [14, 15, 15, 15, 15]


def test_the_most_right_answers_decide_then_the_least_loss_then_the_order():
    assert best_setting([0.5, 0.9, 0.9], [0.1, 0.8, 0.7]) == 2
    assert best_setting([0.5, 0.5], [0.3, 0.3]) == 0


def test_a_setting_whose_loss_is_not_a_number_does_not_win_a_tie():
    assert best_setting([0.5, 0.5, 0.5], [float("inf"), 0.3, 0.4]) == 1


@pytest.mark.parametrize(("shots", "expected"), [("10%", [5, 2, 1, 1]), ("2", [2, 2, 2, 1]), ("100%", [50, 20, 3, 1])])
def test_few_videos_are_a_share_or_a_number_of_every_class(shots, expected):
    videos_V = few_videos(LABELS_V, shots, seed=0)
    assert counts(videos_V) == expected
    assert torch.equal(videos_V, videos_V.unique())
    assert torch.equal(videos_V, few_videos(LABELS_V, shots, seed=0))


def test_more_shots_of_a_seed_hold_the_fewer():
    few, more = (set(few_videos(LABELS_V, shots, seed=3).tolist()) for shots in ("5%", "10%"))
    assert few < more


@pytest.mark.parametrize("shots", ["0", "-1", "0%", "101%", "many", "1.5", "%", ""])
def test_shots_that_are_neither_are_refused(shots):
    with pytest.raises(UsageError, match="--shots"):
        few_videos(LABELS_V, shots, seed=0)


def test_training_videos_that_cannot_choose_are_refused():
    with pytest.raises(UsageError, match="needs two"):
        hold_out(torch.arange(5), seed=0)
    with pytest.raises(UsageError, match="1 class"):
        hold_out(torch.zeros(9, dtype=torch.int64), seed=0)
    with pytest.raises(UsageError, match="2 to 50 folds"):
        fold_masks(LABELS_V, seed=0, num_folds=51)

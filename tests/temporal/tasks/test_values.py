"""Tasks `multilabel` and `regression`: the contract, and their figures beside scikit-learn's."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.task_contract import ATTENTION, LONG_FRAMES, UNSEEN_BY_SOFTMAX, TaskContract, measure
from helpers.task_batches import NUM_CLIPS, NUM_FRAMES, padded, some, truth, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, mean_absolute_error, mean_squared_error, r2_score

from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import clip_videos
from vfz.temporal.tasks import build_task
from vfz.temporal.tasks.multilabel import MultilabelTask, average_precisions
from vfz.temporal.tasks.regression import RegressionTask, moments
from vfz.temporal.tasks.values import constant_answers, mean_of_known

NUM_VALUES = 5


class ValuesContract(TaskContract):
    """What both share."""

    readout_sizes: ClassVar[dict] = {**ATTENTION, "num_classes": NUM_VALUES}
    unused = UNSEEN_BY_SOFTMAX
    masks: ClassVar[tuple] = ("label_known",)

    def values(self, *shape):
        raise NotImplementedError

    def batch(self):
        known = some(NUM_CLIPS, NUM_VALUES, seed=1)
        known[0] = False
        known[1:, 0] = True
        return truth(frame_mask=padded(), label_values=self.values(NUM_CLIPS, NUM_VALUES) * known, label_known=known)

    def outputs(self, values_BK):
        raise NotImplementedError

    def perfect(self, batch, protocol):
        outputs = self.outputs(batch.targets["label_values"])
        return outputs[:, None].repeat(1, NUM_FRAMES, 1) if protocol == "streaming" else outputs

    def invalid(self, batch, protocol):
        unknown = ~batch.targets["label_known"]
        if protocol == "clip":
            return unknown
        mask = torch.ones(NUM_CLIPS, NUM_FRAMES, NUM_VALUES, dtype=torch.bool)
        mask[:, -1] = unknown
        return mask

    @pytest.fixture
    def clips(self, synthetic_cache):
        """As the contract's, with values that follow from the class."""

        class Values:
            task = self.task

            def check(self, videos):
                pass

            def for_clips(self, requests, pts_seconds_BT, own=self):
                labels = torch.tensor([request.video.label for request in requests])
                values = own.of_classes(labels)
                return {"label_values": values, "label_known": torch.ones_like(values, dtype=torch.bool)}

        loader = ClipLoader(
            CachedTokens(synthetic_cache, layers=("3",), parts="all"),
            clip_videos(synthetic_cache, "train"),
            rule=ClipRule(num_frames=LONG_FRAMES),
            batch_size=16,
            device=torch.device("cpu"),
            targets=Values(),
        )
        return list(loader.in_order())

    def of_classes(self, labels):
        raise NotImplementedError


class TestMultilabel(ValuesContract):
    task = "multilabel"
    kwargs: ClassVar[dict] = {"num_classes": NUM_VALUES}
    perfect_metrics: ClassVar[dict] = {"map": 1.0}

    def values(self, *shape):
        values = some(*shape, seed=4).float()
        values[-2], values[-1] = 1.0, 0.0
        return values

    def outputs(self, values_BK):
        return 20.0 * (2 * values_BK - 1)

    def wrong(self, batch, protocol, seed=3):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.perfect(batch, protocol).shape, generator=generator).requires_grad_()

    def of_classes(self, labels):
        return torch.stack([(labels >> bit) & 1 for bit in range(3)] + [labels % 3 == 0, labels < 2], dim=1).float()

    def fitted(self, sizes, cache):
        return sizes | ({"num_frames": LONG_FRAMES} if "num_frames" in sizes else {})


class TestRegression(ValuesContract):
    task = "regression"
    kwargs: ClassVar[dict] = {
        "num_classes": NUM_VALUES,
        "target_means": [0.0, 1.0, -20.0, 3.0, 0.5],
        "target_deviations": [1.0, 0.1, 7.0, 2.0, 30.0],
    }
    perfect_metrics: ClassVar[dict] = {"r2": 1.0, "mse": 0.0, "mae": 0.0}

    def values(self, *shape):
        means, deviations = (torch.tensor(self.kwargs[name]) for name in ("target_means", "target_deviations"))
        return means + deviations * (2 * uniform(*shape, seed=5) - 1)

    def outputs(self, values_BK):
        means, deviations = (torch.tensor(self.kwargs[name]) for name in ("target_means", "target_deviations"))
        return (values_BK - means) / deviations

    def of_classes(self, labels):
        return labels.unsqueeze(1) * torch.tensor(self.kwargs["target_deviations"])

    fitted = TestMultilabel.fitted


@st.composite
def answered(draw, values):
    """Answers and truth [V, K], with ties, and with numbers that are not known."""
    shape = draw(st.integers(2, 25)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    answers = np.round(rng.normal(size=shape), draw(st.integers(0, 3)))
    truth = values(rng, shape)
    truth[rng.random(shape) < draw(st.sampled_from([0, 0.3]))] = np.nan
    return answers, truth


@settings(max_examples=60, deadline=None)
@given(answered(lambda rng, shape: rng.integers(0, 2, shape).astype(float)))
def test_average_precision_is_scikit_learns_over_the_labels_that_a_video_has(data):
    scores, values = data
    found = MultilabelTask.of_labels(scores, values)["average_precision"]
    expected = []
    for score, value, ours in zip(scores.T, values.T, found, strict=True):
        known = np.isfinite(value)
        if (value == 1).any():
            expected.append(average_precision_score(value[known], score[known]))
            assert ours == pytest.approx(expected[-1], abs=1e-12)
        else:
            assert np.isnan(ours)
    figures = MultilabelTask.figures_of(scores, values)
    assert figures["num_labels"] == len(expected)
    if expected:
        assert figures["map"] == pytest.approx(np.mean(expected))


@settings(max_examples=60, deadline=None)
@given(answered(lambda rng, shape: np.round(rng.normal(size=shape) * 10)))
def test_r2_and_errors_are_scikit_learns(data):
    answers, values = data
    found = RegressionTask.of_labels(answers, values)
    for column, (answer, value) in enumerate(zip(answers.T, values.T, strict=True)):
        known = np.isfinite(value)
        if known.sum() > 1:
            assert found["r2"][column] == pytest.approx(r2_score(value[known], answer[known]), rel=1e-9, abs=1e-9)
        if known.any():
            assert found["mse"][column] == pytest.approx(mean_squared_error(value[known], answer[known]))
            assert found["mae"][column] == pytest.approx(mean_absolute_error(value[known], answer[known]))
    if np.isfinite(values).all():
        figures = RegressionTask.figures_of(answers, values)
        assert figures["r2"] == pytest.approx(r2_score(values, answers), rel=1e-9, abs=1e-9)
        assert figures["mse"] == pytest.approx(mean_squared_error(values, answers))


@pytest.mark.parametrize("task", [MultilabelTask, RegressionTask])
def test_a_video_that_counts_twice_is_as_two_and_one_that_counts_nothing_as_none(task):
    rng = np.random.default_rng(0)
    answers, values = rng.normal(size=(12, 3)), rng.integers(0, 2, (12, 3)).astype(float)
    values[3, 1] = np.nan
    drawn = rng.integers(0, 12, (5, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in drawn])
    found = task.headlines(answers, values, weights)
    for row, figure in zip(drawn, found, strict=True):
        assert figure == pytest.approx(task.figures_of(answers[row], values[row])[task.headline])


def test_a_constant_answer_has_the_share_of_a_label_as_its_average_precision_and_no_r2():
    rng = np.random.default_rng(1)
    values = (rng.random((40, 3)) < [0.1, 0.5, 0.9]).astype(float)
    answers = np.broadcast_to(constant_answers(values), values.shape)
    assert average_precisions(answers, values, np.ones((1, 40)))[0] == pytest.approx(values.mean(axis=0))
    assert RegressionTask.figures_of(answers, values)["r2"] == pytest.approx(0)


def test_targets_are_standardised_by_what_is_known_and_a_constant_is_not_blown_up():
    values = np.array([[1.0, 7.0, np.nan], [3.0, 7.0, np.nan], [np.nan, 7.0, np.nan]])
    means, deviations = moments(values)
    assert means == [2.0, 7.0, 0.0]
    assert deviations == [1.0, 1.0, 1.0]


def test_a_regression_answers_in_the_targets_own_units():
    task = build_task("regression", num_classes=2, target_means=[10.0, -1.0], target_deviations=[2.0, 0.5])
    assert task.answers(torch.tensor([[[9.0, 9.0], [1.0, -2.0]]])).tolist() == [[12.0, -2.0]]
    again = build_task("regression", num_classes=2)
    again.load_state_dict(task.state_dict())
    assert again.answers(torch.tensor([[1.0, -2.0]])).tolist() == [[12.0, -2.0]]


def test_answers_of_labels_are_probabilities_of_their_own():
    task = build_task("multilabel", num_classes=3, protocol="clip")
    answers = task.answers(torch.tensor([[0.0, 30.0, -30.0]]))
    assert answers.tolist() == [[0.5, pytest.approx(1.0), pytest.approx(0.0, abs=1e-9)]]


def test_a_label_that_nobody_has_is_left_out_of_the_mean_and_counted():
    batch = truth(
        num_clips=2,
        label_values=torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        label_known=torch.ones(2, 2, dtype=torch.bool),
    )
    task = build_task("multilabel", num_classes=2, protocol="clip")
    result = measure(task.new_metrics(), (torch.tensor([[0.2, 5.0], [0.1, 4.0]]), batch))
    assert result == {"map": 1.0, "num_labels": 1.0, "num_clips": 2.0}


def test_a_mean_over_nothing_is_not_a_number():
    assert np.isnan(mean_of_known(np.array([np.nan])))

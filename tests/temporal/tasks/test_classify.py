"""Task `classify`: the contract, and loss, metrics and the constant answer worked by hand."""

import math
from typing import ClassVar

import pytest
import torch
from contracts.task_contract import ATTENTION, UNSEEN_BY_SOFTMAX, TaskContract, measure
from helpers.task_batches import NUM_CLIPS, NUM_FRAMES, padded, truth
from torchmetrics.classification import MulticlassAccuracy

from vfz.pipeline.errors import UsageError
from vfz.temporal.tasks import build_task
from vfz.temporal.tasks.classify import ClassifyMetrics, classification_loss, valid_labels

NUM_CLASSES = 7


class TestClassify(TaskContract):
    task = "classify"
    kwargs: ClassVar[dict] = {"num_classes": NUM_CLASSES}
    readout_sizes: ClassVar[dict] = {**ATTENTION, "num_classes": NUM_CLASSES}
    unused = UNSEEN_BY_SOFTMAX
    perfect_metrics: ClassVar[dict] = {"top1": 1.0, "top5": 1.0}

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


def test_cross_entropy_is_a_mean_over_the_labelled_clips():
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 0.0]])
    loss = classification_loss(logits, torch.tensor([0, -1, 1]))
    assert float(loss) == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)


def test_label_smoothing_spreads_its_share_over_all_classes():
    logits = torch.tensor([[2.0, 0.0]])
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    loss = classification_loss(logits, torch.tensor([0]), label_smoothing=0.2)
    assert float(loss) == pytest.approx(0.9 * right + 0.1 * wrong)


def test_label_smoothing_beyond_its_range_is_refused():
    with pytest.raises(UsageError, match=r"label smoothing is 1.5; it must be at least 0 and less than 1"):
        build_task("classify", num_classes=3, label_smoothing=1.5)


def test_top1_and_top5_worked_by_hand():
    logits = torch.arange(8.0).expand(4, 8)  # the best are 7, 6, 5, 4, 3
    result = measure(ClassifyMetrics(), (logits, truth(labels=[7, 3, 2, -1])))
    assert result == {"top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3), "num_clips": 3}


def test_with_fewer_than_five_classes_top5_is_always_right():
    assert measure(ClassifyMetrics(), (torch.zeros(2, 3), truth(labels=[0, 2])))["top5"] == 1


def test_frames_answer_by_their_last():
    logits = torch.zeros(1, 3, 4)
    logits[0, :2, 1] = 9
    logits[0, 2, 2] = 1
    assert measure(ClassifyMetrics(), (logits, truth(labels=[2])))["top1"] == 1


@pytest.mark.parametrize(("name", "top_k"), [("top1", 1), ("top5", 5)])
def test_it_agrees_with_torchmetrics_over_batches_of_different_sizes(name, top_k):
    ours, theirs = ClassifyMetrics(), MulticlassAccuracy(num_classes=20, top_k=top_k, average="micro")
    source = torch.Generator().manual_seed(0)
    for num_clips in (1, 30, 7):
        logits = torch.randn(num_clips, 20, generator=source)
        labels = torch.randint(20, (num_clips,), generator=source)
        ours.update(logits, truth(labels=labels))
        theirs.update(logits, labels)
    assert ours.compute()[name] == pytest.approx(float(theirs.compute()))


def test_a_clip_counts_where_it_has_a_class():
    assert valid_labels(truth(labels=[0, -1, 3])).tolist() == [True, False, True]


def test_the_constant_class_is_the_commonest_of_the_training_set():
    predict = build_task("classify", num_classes=4, protocol="clip").constant_predictor(
        [truth(labels=[1, 2, 2]), truth(labels=[2, 1, -1])]
    )
    logits = predict(truth(labels=[0]))
    assert logits.softmax(-1)[0].tolist() == pytest.approx([1 / 9, 3 / 9, 4 / 9, 1 / 9])

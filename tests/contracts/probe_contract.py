"""What every probe must do, whatever it is: subclass and set `name`."""

import dataclasses

import pytest
import torch

from vfz.pipeline.errors import UsageError
from vfz.pipeline.progress import SilentProgress
from vfz.temporal.probes import PROBES
from vfz.temporal.probes.base import FeatureBatch, FeatureClips, ProbeTask


def clips(features_VTND, labels_V):
    """Features in memory as a probe is given them."""

    def batches(epoch):
        generator = torch.Generator().manual_seed(epoch or 0)
        order = torch.arange(len(labels_V)) if epoch is None else torch.randperm(len(labels_V), generator=generator)
        for indices in order.split(16):
            yield FeatureBatch(features_BTND=features_VTND[indices], labels_B=labels_V[indices], indices_B=indices)

    return FeatureClips(batches=batches, labels_V=labels_V)


def make_task(*, signal=1.0, num_classes=3, num_train=120, num_evaluate=60, num_prefix=1, seed=0):
    """Clips [V,2,5,8] whose class shifts every token by a class vector, `signal` times as long as the noise."""
    generator = torch.Generator().manual_seed(seed)
    class_KD = torch.randn(num_classes, 8, generator=generator)

    def split(count):
        labels_V = torch.arange(count) % num_classes
        noise = torch.randn(count, 2, 5, 8, generator=generator)
        return clips(noise + signal * class_KD[labels_V][:, None, None], labels_V)

    return ProbeTask(
        train=split(num_train),
        evaluate=split(num_evaluate),
        num_classes=num_classes,
        num_prefix=num_prefix,
        dim=8,
        num_frames=2,
        pool="mean",
        epochs=8,
        batch_size=16,
        seed=0,
        device=torch.device("cpu"),
        progress=SilentProgress(),
    )


class ProbeContract:
    """Tests of a registered probe."""

    name: str

    def fit(self, task):
        return PROBES[self.name](task)

    def accuracy(self, task):
        fit = self.fit(task)
        return float((fit.predicted_V == fit.labels_V).float().mean())

    def test_it_finds_classes_that_are_there(self):
        assert self.accuracy(make_task(signal=2.0)) > 0.9

    def test_it_finds_nothing_where_there_is_nothing(self):
        accuracy = self.accuracy(make_task(signal=0.0, num_evaluate=300))
        assert abs(accuracy - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5

    def test_it_predicts_every_evaluated_clip_in_order(self):
        task = make_task()
        fit = self.fit(task)
        assert torch.equal(fit.labels_V, task.evaluate.labels_V)
        assert fit.predicted_V.shape == task.evaluate.labels_V.shape

    def test_the_same_seed_gives_the_same_predictions(self):
        assert torch.equal(self.fit(make_task()).predicted_V, self.fit(make_task()).predicted_V)

    def test_the_reported_split_chooses_nothing(self):
        """Other labels there change neither the settings nor the predictions."""
        task = make_task(signal=0.5)
        other = dataclasses.replace(task.evaluate, labels_V=task.evaluate.labels_V.roll(1))
        one, two = self.fit(task), self.fit(dataclasses.replace(task, evaluate=other))
        assert one.chosen == two.chosen
        assert torch.equal(one.predicted_V, two.predicted_V)

    def test_settings_are_chosen_on_a_tenth_of_training(self):
        fit = self.fit(make_task())
        assert fit.chosen["num_held_out"] == 12
        assert 0 <= fit.chosen["held_out_top1"] <= 1

    def test_one_class_only_is_refused(self):
        with pytest.raises(UsageError, match="1 class"):
            self.fit(make_task(num_classes=1))

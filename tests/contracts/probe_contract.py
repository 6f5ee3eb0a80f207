"""What every probe must do, whatever it is: subclass and set `name`, `fit` and, where it trains, `settings`."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from vfz.pipeline.errors import RunError, UsageError


def make_clips(num_videos, *, signal=1.0, num_classes=3, seed=0):
    """Clips [V,2,5,8] and labels [V]: the class shifts every token by a class vector, `signal` times the noise."""
    class_KD = torch.randn(num_classes, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    labels_V = torch.arange(num_videos) % num_classes
    noise = torch.randn(num_videos, 2, 5, 8, generator=generator)
    return noise + signal * class_KD[labels_V][:, None, None], labels_V


class ProbeContract:
    """Tests of a registered probe."""

    name: str
    settings: ClassVar[dict] = {}

    def fit(self, *data, **changes):
        raise NotImplementedError

    def fitted(self, *data, **changes):
        return self.fit(*data, **(self.settings | {"device": "cpu"} | changes))

    def test_it_finds_classes_that_are_there(self):
        probe = self.fitted(*make_clips(120, signal=2.0))
        assert probe.score(*make_clips(60, signal=2.0, seed=1)) > 0.9

    def test_it_finds_nothing_where_there_is_nothing(self):
        probe = self.fitted(*make_clips(120, signal=0.0))
        score = probe.score(*make_clips(300, signal=0.0, seed=1))
        assert abs(score - 1 / 3) < 4 * (2 / 9 / 300) ** 0.5

    def test_probabilities_add_up_to_one_and_the_likeliest_is_predicted(self):
        probe = self.fitted(*make_clips(120))
        x, _ = make_clips(20, seed=1)
        proba = probe.predict_proba(x)
        assert proba.shape == (20, 3)
        torch.testing.assert_close(proba.sum(dim=1), torch.ones_like(proba[:, 0]))
        assert torch.equal(probe.predict(x), proba.argmax(dim=1))

    def test_labels_of_any_kind_come_back_and_arrays_give_arrays(self):
        x, labels_V = make_clips(120, signal=2.0)
        names = np.array(["up", "down", "left"])
        probe = self.fitted(x.numpy(), names[labels_V])
        assert probe.classes_.tolist() == sorted(names)
        predicted = probe.predict(x.numpy())
        assert isinstance(predicted, np.ndarray)
        assert set(predicted) <= set(names)
        assert probe.score(x.numpy(), names[labels_V]) > 0.9

    def test_the_same_seed_gives_the_same_probabilities(self):
        x, _ = make_clips(20, seed=1)
        one, two = (self.fitted(*make_clips(120)).predict_proba(x) for _ in range(2))
        assert torch.equal(one, two)

    def test_settings_are_chosen_on_a_tenth_of_training(self):
        probe = self.fitted(*make_clips(120))
        assert probe.chosen["num_held_out"] == 12
        assert probe.chosen["held_out_top1"] == max(head["held_out_top1"] for head in probe.heads)

    def test_cross_validation_holds_every_video_out_once(self):
        assert self.fitted(*make_clips(60), folds=3).chosen["num_held_out"] == 60

    def test_several_clips_of_a_video_are_answered_by_the_mean_of_their_probabilities(self):
        probe = self.fitted(*make_clips(120))
        clips = [make_clips(10, seed=seed)[0] for seed in (1, 2)]
        together = probe.predict_proba(torch.stack(clips, dim=1))
        torch.testing.assert_close(together, sum(map(probe.predict_proba, clips)) / 2)

    def test_the_best_head_is_never_worse_than_the_chosen_one(self):
        probe = self.fitted(*make_clips(120, signal=0.3))
        data = make_clips(90, signal=0.3, seed=1)
        assert probe.best_head_score(*data) >= probe.score(*data)

    @pytest.mark.parametrize(
        ("labels", "changes", "words"),
        [
            ([0] * 30, {}, "1 class"),
            ([0, 1, 5] * 10, {"num_classes": 3}, "label 5 is out of range: there are 3 classes, 0 to 2"),
            ([0, 1, -1] * 10, {"num_classes": 3}, "label -1 is out of range"),
            (list(range(30)), {}, "one video only"),
            ([0, 1], {}, "one for each"),
            ([0, 1, 2] * 10, {"folds": 11}, "2 to 10 folds"),
            ([0, 1, 2] * 10, {"held_out": 1.5}, "no share"),
        ],
    )
    def test_labels_and_settings_that_cannot_be_fitted_are_refused_in_one_line(self, labels, changes, words):
        x, _ = make_clips(30)
        with pytest.raises(UsageError, match=words) as caught:
            self.fitted(x, labels, **changes)
        assert "\n" not in str(caught.value)

    def test_features_that_are_not_finite_are_refused_by_name(self):
        x, labels_V = make_clips(60)
        x[7, 1, 2, 3] = float("nan")
        with pytest.raises(RunError, match="video '7' are not finite"):
            self.fitted(x, labels_V)

    def test_a_class_of_one_video_is_fitted_and_not_held_out(self):
        x, labels_V = make_clips(61, num_classes=3)
        labels_V[-1] = 3
        probe = self.fitted(x, labels_V)
        assert len(probe.classes_) == 4
        assert probe.chosen["num_held_out"] == 6

    def test_an_argument_nobody_knows_is_refused(self):
        with pytest.raises(TypeError, match="'sede'"):
            self.fitted(*make_clips(30), sede=1)

"""What every task must do. Subclass `TaskContract`, set its attributes, and all of it is tested."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from helpers.task_batches import NUM_CLIPS, NUM_FRAMES, part

from vfz.temporal.cores import build_core
from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import FrameTargets
from vfz.temporal.data.tokens import CachedTokens
from vfz.temporal.data.videos import clip_videos
from vfz.temporal.readouts import READOUTS, build_readout
from vfz.temporal.tasks import TASKS, build_task

GARBAGE = 77.0
NUM_TOKENS, DIM = 4, 24
LONG_FRAMES = 8  # of clips of `synthetic_cache`, whose videos have 6 frames: two are padding

# Sizes of readouts small enough for tests.
ATTENTION = {"readout_dim": 32, "num_heads": 4, "num_frames": NUM_FRAMES}
DECODER = {"readout_dim": 32, "num_heads": 4, "mlp_hidden": 32}
# A bias on the keys adds the same to every score of a head, and softmax does not see it.
UNSEEN_BY_SOFTMAX = ("key_proj.bias",)


def each(outputs, function):
    """A function of a tensor, or of each tensor of a mapping."""
    if isinstance(outputs, torch.Tensor):
        return function(outputs)
    return {name: function(value) for name, value in outputs.items()}


def measure(metrics, *updates):
    """What metrics say of some outputs and batches."""
    for outputs, batch in updates:
        metrics.update(outputs, batch)
    return metrics.compute()


class TaskContract:
    """Reusable tests of a `Task`, in every protocol that it has.

    Attributes:
        task: the registered name.
        kwargs: of `build_task`, besides `protocol`.
        readout_sizes: of `build_readout`, for a readout small enough to learn a batch by heart in a second.
        unused: parameters of the readout that no gradient can reach.
        perfect_metrics: what `compute()` says of perfect outputs, counts aside.
        minimum: the loss of perfect outputs; None where it is only known to be the least.
        masks: the targets that say what is valid.
        counted: a count that its metrics report, and how much a clip with six real frames adds to it.
    """

    task: str
    kwargs: ClassVar[dict] = {}
    readout_sizes: ClassVar[dict]
    unused: ClassVar[tuple] = ()
    perfect_metrics: ClassVar[dict]
    minimum: float | None = 0.0
    masks: ClassVar[tuple] = ()
    counted: ClassVar[tuple] = ("num_clips", 1)

    def batch(self):
        """A batch with something valid and something not."""
        raise NotImplementedError

    def perfect(self, batch, protocol):
        """Outputs that are the truth."""
        raise NotImplementedError

    def invalid(self, batch, protocol):
        """Bool, as large as `perfect`'s outputs without the last dimension of vectors: what nothing may depend on."""
        raise NotImplementedError

    def hide(self, batch):
        """The same batch with nothing valid."""
        targets = {n: torch.zeros_like(v) if n in self.masks else v for n, v in batch.targets.items()}
        return replace(batch, labels_B=torch.full_like(batch.labels_B, -1), targets=targets)

    def pytest_generate_tests(self, metafunc):
        if "protocol" in metafunc.fixturenames:
            metafunc.parametrize("protocol", TASKS[self.task].protocols)

    @pytest.fixture
    def built(self, protocol):
        return build_task(self.task, protocol=protocol, **self.kwargs)

    def wrong(self, batch, protocol, seed=3):
        """Outputs some way off the truth, that take gradients."""
        generator = torch.Generator().manual_seed(seed)
        return each(
            self.perfect(batch, protocol),
            lambda t: (t + 0.3 * torch.randn(t.shape, generator=generator)).requires_grad_(),
        )

    def spoil(self, outputs, batch, protocol, value):
        invalid = self.invalid(batch, protocol)

        def put(t):
            mask = invalid.reshape(*invalid.shape, *[1] * (t.dim() - invalid.dim()))
            return torch.where(mask, value, t.detach()).requires_grad_()

        return each(outputs, put)

    def metrics_of(self, task, outputs, batch):
        return measure(task.new_metrics(), (outputs, batch))

    def test_perfect_outputs_have_the_least_loss(self, built, protocol):
        batch = self.batch()
        best = float(built.loss(self.perfect(batch, protocol), batch).detach())
        if self.minimum is not None:
            assert best == pytest.approx(self.minimum, abs=1e-3)
        for seed in range(5):
            assert best < float(built.loss(self.wrong(batch, protocol, seed), batch).detach())

    def test_perfect_outputs_have_perfect_metrics(self, built, protocol):
        batch = self.batch()
        metrics = self.metrics_of(built, self.perfect(batch, protocol), batch)
        assert {k: v for k, v in metrics.items() if not k.startswith("num_")} == pytest.approx(
            self.perfect_metrics, abs=1e-5
        )

    def test_wrong_outputs_have_a_worse_headline(self, built, protocol):
        batch = self.batch()
        worse = self.metrics_of(built, self.wrong(batch, protocol), batch)[built.headline]
        best = self.perfect_metrics[built.headline]
        assert worse < best if built.higher_is_better else worse > best

    def test_the_counts_are_reported(self, built, protocol):
        batch = self.batch()
        metrics = self.metrics_of(built, self.wrong(batch, protocol), batch)
        assert [name for name in metrics if name.startswith("num_")]
        assert all(value > 0 for name, value in metrics.items() if name.startswith("num_"))

    def test_the_loss_is_a_finite_scalar_with_finite_gradients(self, built, protocol):
        batch = self.batch()
        outputs = self.wrong(batch, protocol)
        loss = built.loss(outputs, batch)
        assert loss.shape == ()
        loss.backward()
        assert loss.isfinite()
        each(outputs, lambda t: self._check_gradient(t.grad))
        for parameter in built.parameters():
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().sum() > 0

    def _check_gradient(self, gradient):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0

    def test_outputs_of_any_size_have_a_finite_loss_and_gradient(self, built, protocol):
        batch = self.batch()
        for scale in (0.0, -1e4, 1e4):
            outputs = each(self.perfect(batch, protocol), lambda t, s=scale: (t.detach() * s).requires_grad_())
            loss = built.loss(outputs, batch)
            loss.backward()
            assert loss.isfinite()
            each(outputs, lambda t: self._check_finite(t.grad))

    def _check_finite(self, gradient):
        assert gradient.isfinite().all()

    @pytest.mark.parametrize("value", [GARBAGE, float("nan")])
    def test_what_is_not_valid_reaches_neither_loss_nor_gradient_nor_metrics(self, built, protocol, value):
        batch = self.batch()
        outputs = self.wrong(batch, protocol)
        spoiled = self.spoil(outputs, batch, protocol, value)
        loss, same = built.loss(outputs, batch), built.loss(spoiled, batch)
        same.backward()
        assert float(same.detach()) == float(loss.detach())
        invalid = self.invalid(batch, protocol)
        assert invalid.any()
        each(spoiled, lambda t: self._check_zero(t.grad[invalid]))
        assert self.metrics_of(built, spoiled, batch) == self.metrics_of(built, outputs, batch)

    def _check_zero(self, gradient):
        assert (gradient == 0).all()

    def test_nothing_valid_is_a_loss_of_zero_that_has_a_graph(self, built, protocol):
        batch = self.hide(self.batch())
        outputs = self.wrong(batch, protocol)
        loss = built.loss(outputs, batch)
        loss.backward()
        assert float(loss.detach()) == 0
        assert int(built.num_valid(batch)) == 0
        each(outputs, lambda t: self._check_zero(t.grad))
        for parameter in built.parameters():
            assert (parameter.grad == 0).all()

    def test_nothing_valid_has_no_metrics_rather_than_zeros(self, built, protocol):
        batch = self.hide(self.batch())
        metrics = self.metrics_of(built, self.wrong(batch, protocol), batch)
        assert all(value == 0 if name.startswith("num_") else value != value for name, value in metrics.items())

    def test_losses_of_parts_add_up_by_their_numbers(self, built, protocol):
        batch = self.batch()
        outputs = self.wrong(batch, protocol)
        total = 0.0
        for rows in (slice(0, 1), slice(1, None)):
            weight = float(built.num_valid(part(batch, rows)))
            total += weight * float(built.loss(each(outputs, lambda t, r=rows: t[r]), part(batch, rows)).detach())
        whole = float(built.loss(outputs, batch).detach())
        assert total / float(built.num_valid(batch)) == pytest.approx(whole, rel=1e-5)

    def test_states_of_parts_add_up_to_the_metrics_of_the_whole(self, built, protocol):
        batch = self.batch()
        outputs = self.wrong(batch, protocol)
        states = []
        for rows in (slice(0, 2), slice(2, None)):
            metrics = built.new_metrics()
            metrics.update(each(outputs, lambda t, r=rows: t[r]), part(batch, rows))
            states.append(metrics.state())
        merged = built.new_metrics()
        state = merged.combined(states)
        merged.load_state(state)
        assert state.dtype == torch.float64
        assert merged.compute() == pytest.approx(self.metrics_of(built, outputs, batch), rel=1e-12)

    def test_what_is_kept_of_clips_is_a_row_for_each_and_gives_the_metrics_again(self, built, protocol):
        batch = self.batch()
        outputs = each(self.wrong(batch, protocol), torch.Tensor.detach)
        kept = built.kept(outputs, batch)
        assert all(len(values) == NUM_CLIPS for values in kept.values())
        figures = built.figures({name: values.double() for name, values in kept.items()})
        if figures is not None:
            assert figures == pytest.approx(self.metrics_of(built, outputs, batch))
        assert kept or figures is None

    def test_a_state_of_another_size_is_refused(self, built):
        with pytest.raises(ValueError, match="these metrics keep"):
            built.new_metrics().load_state(torch.zeros(99))

    def test_half_precision_outputs_are_taken(self, built, protocol):
        batch = self.batch()
        outputs = self.wrong(batch, protocol)
        rough = each(outputs, lambda t: t.detach().bfloat16())
        loss = built.loss(rough, batch)
        assert loss.dtype == torch.float32
        exact = float(built.loss(outputs, batch).detach())
        assert float(loss.detach()) == pytest.approx(exact, rel=0.1, abs=0.05)
        self.metrics_of(built, rough, batch)

    def test_the_constant_predictor_answers_as_a_readout_does(self, built, protocol):
        batch = self.batch()
        predict = built.constant_predictor([part(batch, slice(0, 3)), part(batch, slice(3, None))])
        outputs = predict(batch)
        perfect = self.perfect(batch, protocol)
        if isinstance(perfect, torch.Tensor):
            assert outputs.shape == perfect.shape
        else:
            assert {k: v.shape for k, v in outputs.items()} == {k: v.shape for k, v in perfect.items()}
        metrics = self.metrics_of(built, outputs, batch)
        assert all(value == value for value in metrics.values())
        headline, best = metrics[built.headline], self.perfect_metrics[built.headline]
        assert headline < best if built.higher_is_better else headline > best

    def build_readout(self, protocol):
        torch.manual_seed(0)
        return build_readout(self.task, dim=DIM, protocol=protocol, **self.readout_sizes)

    def answer(self, readout, built, batch):
        """What a readout makes of random tokens, which tell every frame of every clip apart."""
        tokens = torch.randn(NUM_CLIPS, NUM_FRAMES, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(9))
        return readout(tokens, **built.readout_inputs(batch))

    def test_it_knows_the_inputs_and_the_protocols_of_its_readout(self, built):
        assert built.input_names == READOUTS[self.task].input_names
        assert built.protocols == READOUTS[self.task].protocols
        assert TASKS[self.task].name == self.task

    def test_the_readout_answers_what_the_task_takes(self, built, protocol):
        batch = self.batch()
        shapes = {}
        for kind, outputs in (
            ("readout", self.answer(self.build_readout(protocol), built, batch)),
            ("perfect", self.perfect(batch, protocol)),
        ):
            outputs = outputs if isinstance(outputs, Mapping) else {"": outputs}
            shapes[kind] = {name: value.shape for name, value in outputs.items()}
        assert shapes["readout"] == shapes["perfect"]

    def test_the_loss_reaches_every_weight_of_the_readout(self, built, protocol):
        batch, readout = self.batch(), self.build_readout(protocol)
        built.loss(self.answer(readout, built, batch), batch).backward()
        for name, parameter in readout.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert name in self.unused or parameter.grad.abs().sum() > 0, name

    def test_a_readout_that_learns_a_batch_beats_the_constant_predictor(self, built, protocol):
        batch, readout = self.batch(), self.build_readout(protocol)
        optimizer = torch.optim.AdamW([*readout.parameters(), *built.parameters()], lr=3e-3)
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = built.loss(self.answer(readout, built, batch), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(readout.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        learned = self.metrics_of(built, self.answer(readout, built, batch), batch)[built.headline]
        constant = self.metrics_of(built, built.constant_predictor([batch])(batch), batch)[built.headline]
        assert losses[-1] < losses[0]
        assert learned > constant if built.higher_is_better else learned < constant

    @pytest.fixture
    def clips(self, synthetic_cache):
        """Batches of 16 clips of a real cache with their targets, of 8 frames where the videos have 6."""
        targets = None
        if TASKS[self.task].needs_targets:
            size = self.readout_sizes.get("output_size")
            targets = FrameTargets(synthetic_cache, task=self.task, output_size=size)
        loader = ClipLoader(
            CachedTokens(synthetic_cache, layers=("3",), parts="all"),
            clip_videos(synthetic_cache, "train"),
            rule=ClipRule(num_frames=LONG_FRAMES),
            batch_size=16,
            device=torch.device("cpu"),
            targets=targets,
        )
        return list(loader.in_order())

    def fitted(self, sizes, cache):
        """The same sizes and arguments for clips of a cache."""
        fitting = {"num_frames": LONG_FRAMES, "num_classes": len(cache.class_names)}
        return sizes | {name: value for name, value in fitting.items() if name in sizes}

    def test_a_core_and_a_readout_are_trained_and_measured_on_clips(self, protocol, clips, synthetic_cache):
        torch.manual_seed(0)
        task = build_task(self.task, protocol=protocol, **self.fitted(self.kwargs, synthetic_cache))
        dim = clips[0].layers_BTND[0].shape[-1]
        core = build_core("gru", dim=dim, num_layers=1)
        sizes = self.fitted(self.readout_sizes, synthetic_cache)
        readout = build_readout(self.task, dim=dim, protocol=protocol, **sizes)

        def answer(batch):
            features, _ = core(batch.layers_BTND[0])
            return readout(features, **task.readout_inputs(batch))

        parameters = [*core.parameters(), *readout.parameters(), *task.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=2e-3)
        losses = []
        for _ in range(4):
            for batch in clips:
                optimizer.zero_grad()
                loss = task.loss(answer(batch), batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                losses.append(float(loss.detach()))
        assert all(math.isfinite(loss) for loss in losses)
        assert sum(losses[-len(clips) :]) < sum(losses[: len(clips)])
        metrics = measure(task.new_metrics(), *((answer(batch), batch) for batch in clips))
        assert all(math.isfinite(value) for value in metrics.values())

    def test_what_is_counted_are_the_real_frames_of_all_clips(self, protocol, clips, synthetic_cache):
        task = build_task(self.task, protocol=protocol, **self.fitted(self.kwargs, synthetic_cache))
        predict = task.constant_predictor(clips)
        metrics = measure(task.new_metrics(), *((predict(batch), batch) for batch in clips))
        name, of_a_clip = self.counted
        assert metrics[name] == of_a_clip * sum(len(batch.video_ids) for batch in clips)

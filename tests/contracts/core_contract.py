"""What every temporal core must do. Subclass `CoreContract`, set `name`, and all of it is tested."""

import copy
from typing import ClassVar

import pytest
import torch
from helpers.measure import peak_bytes

from vfz.pipeline.errors import UsageError
from vfz.temporal.cores import build_core

NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM = 2, 7, 5, 16


def flatten_state(state):
    """The tensors of a state, however it nests them."""
    return [state] if isinstance(state, torch.Tensor) else [leaf for part in state for leaf in flatten_state(part)]


class CoreContract:
    """Reusable tests of a `TemporalCore`.

    `name` is the core's registered name, `kwargs` further arguments. `frames_until_constant` is after how many frames
    the state has its final size in memory: 1 unless the core's documentation says that it grows up to a bound.
    `has_activations` is False for a core that keeps nothing for the backward pass but its input.
    """

    name: str
    kwargs: ClassVar[dict] = {}
    frames_until_constant: ClassVar[int] = 1
    has_activations: ClassVar[bool] = True

    def build(self, *, dim=DIM, num_layers=2, **kwargs):
        return build_core(self.name, dim=dim, num_layers=num_layers, num_heads=4, **self.kwargs, **kwargs)

    @pytest.fixture
    def core(self):
        torch.manual_seed(0)
        return self.build().eval()

    @pytest.fixture
    def tokens(self):
        return torch.randn(NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(1))

    def test_the_output_has_the_shape_of_the_input(self, core, tokens):
        y, _ = core(tokens)
        assert y.shape == tokens.shape
        assert y.dtype == tokens.dtype
        assert core.dim == DIM

    def test_changing_a_later_frame_changes_no_earlier_output(self, core, tokens):
        changed = tokens.clone()
        changed[:, 4:] += 1.0 + torch.randn_like(changed[:, 4:])
        before, after = core(tokens)[0], core(changed)[0]
        torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
        assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_a_frame_that_is_not_finite_reaches_no_earlier_output_and_no_other_video(self, core, tokens, value):
        tokens = tokens.repeat(1, 12, 1, 1)
        for first, where in ((40, ()), (40, (2,)), (83, (2, 3))):
            changed = tokens.clone()
            changed[(0, first, *where)] = value
            before, after = core(tokens)[0], core(changed)[0]
            torch.testing.assert_close(before[0, :first], after[0, :first], rtol=0, atol=1e-6)
            torch.testing.assert_close(before[1:], after[1:], rtol=0, atol=1e-6)
            assert not after[0, first][where[:1]].isfinite().all()

    def test_frames_that_are_not_finite_are_carried_by_the_state_as_in_one_pass(self, core, tokens):
        tokens[0, 2] = torch.nan
        full, _ = core(tokens)
        first, state = core(tokens[:, :4])
        outputs = [first]
        for frame in tokens[:, 4:].unbind(1):
            y, state = core.step(frame, state)
            outputs.append(y.unsqueeze(1))
        torch.testing.assert_close(torch.cat(outputs, 1), full, rtol=0, atol=1e-5, equal_nan=True)

    def test_videos_of_a_batch_do_not_see_each_other(self, core, tokens):
        torch.testing.assert_close(core(tokens)[0][:1], core(tokens[:1])[0], rtol=0, atol=1e-5)

    def test_stepping_equals_the_full_pass(self, core, tokens):
        full, full_state = core(tokens)
        state, outputs = None, []
        for frame in tokens.unbind(1):
            y, state = core.step(frame, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), full, rtol=0, atol=1e-5)
        for ours, theirs in zip(flatten_state(state), flatten_state(full_state), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    def test_in_float64_stepping_equals_the_full_pass_to_its_digits(self, core, tokens):
        core, tokens = core.double(), tokens.double().repeat(1, 12, 1, 1)
        full, _ = core(tokens)
        state, outputs = None, []
        for frame in tokens.unbind(1):
            y, state = core.step(frame, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), full, rtol=0, atol=1e-12)
        assert {leaf.dtype for leaf in [full, *flatten_state(state)]} == {torch.float64}

    @pytest.mark.parametrize("split", [1, 3, 6])
    def test_two_parts_with_carried_state_equal_one_pass(self, core, tokens, split):
        full, _ = core(tokens)
        first, state = core(tokens[:, :split])
        second, _ = core(tokens[:, split:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), full, rtol=0, atol=1e-5)

    def test_a_state_can_be_used_twice(self, core, tokens):
        _, state = core(tokens[:, :3])
        kept = copy.deepcopy([leaf.detach() for leaf in flatten_state(state)])
        first, second = core(tokens[:, 3:], state)[0], core(tokens[:, 3:], state)[0]
        assert torch.equal(first, second)
        assert all(torch.equal(now, then) for now, then in zip(flatten_state(state), kept, strict=True))

    def test_gradients_reach_every_parameter_and_the_first_frame(self, core, tokens):
        tokens.requires_grad_()
        y, _ = core(tokens)
        (y * torch.randn_like(y)).sum().backward()
        for name, parameter in [*core.named_parameters(), ("tokens", tokens)]:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        assert (tokens.grad[:, 0].abs().sum() > 0).item()

    def test_gradients_pass_through_a_carried_state(self, core, tokens):
        tokens.requires_grad_()
        y, state = core(tokens[:, :3])
        rest, _ = core(tokens[:, 3:], state)
        cotangent = torch.randn_like(tokens)
        (torch.cat([y, rest], 1) * cotangent).sum().backward()
        in_parts, tokens.grad = tokens.grad, None
        (core(tokens)[0] * cotangent).sum().backward()
        torch.testing.assert_close(in_parts, tokens.grad, rtol=1e-4, atol=1e-5)

    def test_training_mode_gives_finite_gradients(self, core, tokens):
        core.train()
        core(tokens)[0].square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in core.parameters())

    def test_it_runs_under_bf16_autocast_close_to_float32(self, core, tokens):
        exact, exact_state = core(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, state = core(tokens)
            y.float().square().sum().backward()
            stepped, _ = core.step(tokens[:, 0], state)
        assert stepped.isfinite().all()
        assert (y.float() - exact).norm() / exact.norm() < 0.05
        assert [leaf.shape for leaf in flatten_state(state)] == [leaf.shape for leaf in flatten_state(exact_state)]
        assert all(parameter.grad.isfinite().all() for parameter in core.parameters())

    def test_it_runs_with_weights_and_tokens_of_bf16(self, core, tokens):
        exact, _ = core(tokens)
        y, state = core.bfloat16()(tokens.bfloat16())
        stepped, _ = core.step(tokens[:, 0].bfloat16(), state)
        assert (y.dtype, stepped.dtype) == (torch.bfloat16, torch.bfloat16)
        assert (y.float() - exact).norm() / exact.norm() < 0.05

    def test_a_state_of_bf16_autocast_goes_on_in_float32(self, core, tokens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, state = core(tokens[:, :3].bfloat16())
        exact, _ = core(tokens)
        rest, _ = core(tokens[:, 3:], state)
        assert rest.dtype == torch.float32
        assert (rest - exact[:, 3:]).norm() / exact[:, 3:].norm() < 0.05

    def test_tokens_of_another_shape_are_refused_in_one_line(self, core, tokens):
        for wrong in (tokens[..., 1:], tokens[:, 0], tokens[:, :0]):
            with pytest.raises(UsageError, match=rf"^the core got tokens of shape .*; it takes \[B, T, N, {DIM}\] .*$"):
                core(wrong)

    def test_a_state_of_other_videos_or_tokens_is_refused_in_one_line(self, core, tokens):
        _, state = core(tokens)
        if not flatten_state(state):
            return
        for wrong in (tokens[:1], tokens[:, :, :1]):
            with pytest.raises(UsageError, match=r"^the core got a state of shape .*; pass the state of the frames "):
                core(wrong, state)

    def test_shapes_can_be_had_without_computing(self, core, tokens):
        y, state = core.to("meta")(tokens.to("meta"))
        assert y.shape == tokens.shape
        assert core.step(tokens[:, 0].to("meta"), state)[0].shape == tokens[:, 0].shape

    def test_a_state_dict_makes_the_same_core(self, core, tokens):
        torch.manual_seed(1)
        other = self.build().eval()
        other.load_state_dict(core.state_dict())
        assert torch.equal(other(tokens)[0], core(tokens)[0])

    @torch.no_grad()
    def test_a_long_stream_keeps_a_state_of_constant_size(self, core, tokens):
        state, sizes = None, []
        for t in range(self.frames_until_constant + 100):
            y, state = core.step(tokens[:, t % NUM_FRAMES], state)
            sizes.append(sum(leaf.untyped_storage().nbytes() for leaf in flatten_state(state)))
        assert sizes[: self.frames_until_constant] == sorted(sizes[: self.frames_until_constant])
        assert set(sizes[self.frames_until_constant - 1 :]) == {sizes[-1]}
        assert all(leaf.isfinite().all() for leaf in [y, *flatten_state(state)])

    @pytest.mark.parametrize("training", [False, True], ids=["dropout off", "dropout on"])
    def test_checkpointing_changes_no_output_state_or_gradient(self, core, tokens, training):
        core.train(training)
        tokens.requires_grad_()

        def run(checkpointing):
            core.checkpointing = checkpointing
            core.zero_grad()
            tokens.grad = None
            torch.manual_seed(2)
            first, state = core(tokens[:, :3])
            rest, state = core(tokens[:, 3:], state)
            y = torch.cat([first, rest], 1)
            (y.sin().sum() + sum(leaf.square().sum() for leaf in flatten_state(state))).backward()
            grads = [parameter.grad.clone() for parameter in core.parameters()]
            return [y, *flatten_state(state), tokens.grad, *grads]

        for without, with_checkpointing in zip(run(False), run(True), strict=True):
            torch.testing.assert_close(without, with_checkpointing, rtol=1e-6, atol=1e-7)

    def test_checkpointing_takes_less_memory(self):
        tokens = torch.randn(1, 16, 8, 32, requires_grad=True)
        cores = [self.build(dim=32, num_layers=4, checkpointing=checkpointing) for checkpointing in (False, True)]
        without, with_checkpointing = (peak_bytes(lambda core=core: core(tokens)[0].sum().backward()) for core in cores)
        if self.has_activations:
            assert with_checkpointing < 0.75 * without
        else:
            assert with_checkpointing == without

    def test_checkpointing_works_under_bf16_autocast(self, core, tokens):
        core.checkpointing = True
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = core(tokens)
        y.float().square().sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in core.parameters())

"""What every readout must do. Subclass `ReadoutContract`, set its attributes, and all of it is tested."""

from typing import ClassVar

import pytest
import torch

from vfz.temporal.readouts import build_readout

NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM = 2, 5, 6, 16


class ReadoutContract:
    """Reusable tests of a `Readout`.

    Attributes:
        task: the registered name.
        kwargs: arguments of the readout besides `dim` and `protocol`.
        answer_shape: of one answer, after `[B, T]` (streaming) or `[B]` (clip).
        zero_gradients: parameters whose gradient is zero by construction.
    """

    task: str
    kwargs: ClassVar[dict]
    answer_shape: tuple
    zero_gradients: tuple = ()

    def build(self, protocol):
        torch.manual_seed(0)
        return build_readout(self.task, dim=DIM, protocol=protocol, **self.kwargs).eval()

    @pytest.fixture(params=["streaming", "clip"])
    def readout(self, request):
        return self.build(request.param)

    @pytest.fixture
    def tokens(self):
        return torch.randn(NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(1))

    def test_a_streaming_readout_answers_every_frame(self, tokens):
        assert self.build("streaming")(tokens).shape == (NUM_VIDEOS, NUM_FRAMES, *self.answer_shape)

    def test_a_clip_readout_answers_once(self, tokens):
        assert self.build("clip")(tokens).shape == (NUM_VIDEOS, *self.answer_shape)

    def test_a_streaming_answer_depends_on_its_own_frame_only(self, tokens):
        readout = self.build("streaming")
        changed = tokens.clone()
        changed[:, 2] += torch.randn_like(changed[:, 2])
        same = [0, 1, 3, 4]
        torch.testing.assert_close(readout(changed)[:, same], readout(tokens)[:, same], rtol=0, atol=1e-6)
        assert not torch.allclose(readout(changed)[:, 2], readout(tokens)[:, 2])

    def test_a_streaming_readout_takes_any_number_of_frames(self, tokens):
        readout = self.build("streaming")
        torch.testing.assert_close(readout(tokens[:, :1]), readout(tokens)[:, :1], rtol=0, atol=1e-6)

    def test_a_clip_answer_depends_on_every_frame(self, tokens):
        readout = self.build("clip")
        tokens.requires_grad_()
        readout(tokens).sum().backward()
        assert (tokens.grad.abs().sum(dim=(0, 2, 3)) > 0).all()

    def test_a_clip_readout_tells_the_order_of_frames(self, tokens):
        readout = self.build("clip")
        assert not torch.allclose(readout(tokens), readout(tokens.flip(1)), atol=1e-6)

    def test_a_clip_readout_takes_other_lengths_than_it_was_built_for(self, tokens):
        readout = self.build("clip")
        assert readout(torch.cat([tokens, tokens], 1)).isfinite().all()

    def test_gradients_reach_every_parameter(self, readout, tokens):
        y = readout(tokens)
        (y * torch.randn_like(y)).sum().backward()
        for name, parameter in readout.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert name in self.zero_gradients or parameter.grad.abs().sum() > 0, name

    def test_it_runs_under_bf16_autocast_close_to_float32(self, readout, tokens):
        exact = readout(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = readout(tokens)
            y.float().square().sum().backward()
        assert (y.float() - exact).norm() / exact.norm() < 0.05
        assert all(parameter.grad.isfinite().all() for parameter in readout.parameters())

    def test_a_state_dict_makes_the_same_readout(self, readout, tokens):
        torch.manual_seed(1)
        other = build_readout(self.task, dim=DIM, protocol=readout.protocol, **self.kwargs).eval()
        other.load_state_dict(readout.state_dict())
        assert torch.equal(other(tokens), readout(tokens))

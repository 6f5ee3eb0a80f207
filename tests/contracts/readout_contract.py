"""What every readout must do. Subclass `ReadoutContract`, set its attributes, and all of it is tested."""

from typing import ClassVar

import pytest
import torch

from vfz.pipeline.errors import UsageError
from vfz.temporal.readouts import READOUTS, build_readout

NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM = 2, 6, 5, 16
# A bias on the keys adds the same to every score of a head, and softmax does not see it.
UNSEEN_BY_SOFTMAX = ("key_proj.bias",)


def subset(values, rows):
    """The same inputs for some of the videos."""
    return {name: value[rows] for name, value in values.items()}


class ReadoutContract:
    """Reusable tests of a `Readout`, in every protocol that its task has.

    A task with a clip protocol subclasses `ClipReadoutContract`.

    Attributes:
        task: the registered name.
        kwargs: arguments of the readout besides `dim` and `protocol`.
        inputs: what it needs besides the tokens, for `NUM_VIDEOS` videos.
        zero_gradients: parameters whose gradient is zero by construction.
        sees_only_its_frame: whether a streaming answer depends on no other frame, not even an earlier one.
    """

    task: str
    kwargs: ClassVar[dict]
    inputs: ClassVar[dict] = {}
    zero_gradients: tuple = ()
    sees_only_its_frame = True

    def shapes(self, batch_and_time, protocol):
        """Shapes of the outputs by name (`None` for a single tensor) as `run` returns them."""
        raise NotImplementedError

    def build(self, protocol, seed=0):
        torch.manual_seed(seed)
        return build_readout(self.task, dim=DIM, protocol=protocol, **self.kwargs).eval()

    def run(self, readout, tokens, **changed_inputs):
        """The outputs by name, a single tensor under None; time is moved to dimension 1."""
        outputs = readout(tokens, **{**self.inputs, **changed_inputs})
        outputs = outputs if isinstance(outputs, dict) else {None: outputs}
        return {name: self.by_frame(value) for name, value in outputs.items()}

    def by_frame(self, value):
        """Moves time to dimension 1, where it is elsewhere."""
        return value

    def scalar(self, outputs):
        """A number that depends on every output, each element in its own way."""
        generator = torch.Generator().manual_seed(2)
        return sum((y.float() * torch.randn(y.shape, generator=generator)).sum() for y in outputs.values())

    def pytest_generate_tests(self, metafunc):
        if "readout" in metafunc.fixturenames:
            metafunc.parametrize("readout", READOUTS[self.task].protocols, indirect=True)

    @pytest.fixture
    def readout(self, request):
        return self.build(request.param)

    @pytest.fixture
    def streaming(self):
        return self.build("streaming")

    @pytest.fixture
    def tokens(self):
        return torch.randn(NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM, generator=torch.Generator().manual_seed(1))

    def test_the_outputs_have_the_shapes_it_promises(self, readout, tokens):
        outputs = self.run(readout, tokens)
        shapes = self.shapes((NUM_VIDEOS, NUM_FRAMES), readout.protocol)
        assert {name: tuple(value.shape) for name, value in outputs.items()} == shapes

    def test_a_streaming_answer_does_not_depend_on_later_frames(self, streaming, tokens):
        changed = tokens.clone()
        changed[:, 2] += torch.randn_like(changed[:, 2])
        before, after = self.run(streaming, tokens), self.run(streaming, changed)
        same = [0, 1, 3, 4, 5] if self.sees_only_its_frame else [0, 1]
        for name in before:
            torch.testing.assert_close(after[name][:, same], before[name][:, same], rtol=0, atol=1e-6)
            assert not torch.allclose(after[name][:, 2], before[name][:, 2], atol=1e-4)

    def test_a_streaming_readout_takes_any_number_of_frames(self, streaming, tokens):
        all_frames = self.run(streaming, tokens)
        for num_frames in (1, 3):
            for name, value in self.run(streaming, tokens[:, :num_frames]).items():
                torch.testing.assert_close(value, all_frames[name][:, :num_frames], rtol=0, atol=1e-6)

    def test_videos_of_a_batch_do_not_see_each_other(self, readout, tokens):
        both = self.run(readout, tokens[:, :NUM_FRAMES])
        alone = self.run(readout, tokens[1:], **subset(self.inputs, slice(1, 2)))
        if not self.sees_only_its_frame:  # predictions are fed back, and rounding with them
            both, alone = ({name: value[:, :1] for name, value in outputs.items()} for outputs in (both, alone))
        for name, value in alone.items():
            torch.testing.assert_close(value, both[name][1:], rtol=0, atol=1e-5)

    def test_gradients_reach_every_parameter(self, readout, tokens):
        self.scalar(self.run(readout, tokens)).backward()
        for name, parameter in readout.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert name in self.zero_gradients or parameter.grad.abs().sum() > 0, name

    def test_it_runs_under_bf16_autocast_close_to_float32(self, readout, tokens):
        exact = self.run(readout, tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = self.run(readout, tokens)
            self.scalar(outputs).backward()
        for name, value in outputs.items():
            # Where predictions are fed back, only the first frame is free of amplified rounding.
            ours, theirs = (value, exact[name]) if self.sees_only_its_frame else (value[:, :1], exact[name][:, :1])
            assert (ours.float() - theirs).norm() / theirs.norm() < 0.05, name
        assert all(parameter.grad.isfinite().all() for parameter in readout.parameters())

    def test_shapes_can_be_had_without_computing(self, readout, tokens):
        inputs = {name: value.to("meta") for name, value in self.inputs.items()}
        outputs = self.run(readout.to("meta"), tokens.to("meta"), **inputs)
        shapes = self.shapes((NUM_VIDEOS, NUM_FRAMES), readout.protocol)
        assert {name: tuple(value.shape) for name, value in outputs.items()} == shapes

    def test_a_state_dict_makes_the_same_readout(self, readout, tokens):
        other = self.build(readout.protocol, seed=1)
        other.load_state_dict(readout.state_dict())
        ours, theirs = self.run(other, tokens), self.run(readout, tokens)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_tokens_of_another_width_are_refused_in_one_line(self, readout):
        with pytest.raises(UsageError, match=r"got tokens of shape \[2, 6, 5, 17\]; it takes \[B, T, N, 16\]$"):
            self.run(readout, torch.zeros(NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM + 1))

    def test_inputs_it_does_not_take_are_refused_in_one_line(self, readout, tokens):
        with pytest.raises(UsageError, match=r"the readout got the inputs .*colour.* it takes [^\n]*$"):
            self.run(readout, tokens, colour=torch.zeros(NUM_VIDEOS))

    def test_inputs_of_other_videos_are_refused_in_one_line(self, readout, tokens):
        for name, value in self.inputs.items():
            with pytest.raises(UsageError, match=rf"{name} has shape \[3[^\n]* beside tokens of 2 clips"):
                self.run(readout, tokens, **{name: torch.cat([value, value[:1]])})

    def test_a_size_it_does_not_have_is_refused_by_name(self):
        with pytest.raises(UsageError, match=f"the {self.task} readout has no width; its sizes are "):
            build_readout(self.task, dim=DIM, **self.kwargs, width=3)

    def test_a_size_below_one_is_refused_by_name(self):
        for name in self.kwargs:
            with pytest.raises(UsageError, match=f"{name} is 0; "):
                build_readout(self.task, dim=DIM, **{**self.kwargs, name: 0})

    def test_a_protocol_is_had_or_refused_in_one_line(self):
        if READOUTS[self.task].protocols == ("streaming",):
            with pytest.raises(UsageError, match=r"no protocol 'clip'; use streaming$"):
                self.build("clip")
        else:
            assert self.build("clip").protocol == "clip"


class ClipReadoutContract(ReadoutContract):
    """For tasks that have the clip protocol too.

    Attributes:
        clip_takes_other_lengths: whether a clip may have another number of frames than the readout was built for.
    """

    clip_takes_other_lengths = True

    @pytest.fixture
    def clip(self):
        return self.build("clip")

    def test_a_clip_answer_depends_on_every_frame(self, clip, tokens):
        tokens.requires_grad_()
        self.scalar(self.run(clip, tokens)).backward()
        assert (tokens.grad.abs().sum(dim=(0, 2, 3)) > 0).all()

    def test_a_clip_of_another_length_is_taken_or_refused_in_one_line(self, clip, tokens):
        longer = torch.cat([tokens, tokens], 1)
        if self.clip_takes_other_lengths:
            assert all(value.isfinite().all() for value in self.run(clip, longer).values())
        else:
            with pytest.raises(UsageError, match=r"got 12 frames and was built for clips of 6; [^\n]*$"):
                self.run(clip, longer)


class CoordinatesContract:
    """For readouts that answer with coordinates, beside the contract: half precision is too coarse for those."""

    def test_coordinates_keep_float32_under_autocast(self, streaming, tokens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = self.run(streaming, tokens)
        assert {value.dtype for value in outputs.values()} == {torch.float32}

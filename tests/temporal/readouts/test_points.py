"""Readout `points`: the contract, and what it does with queries."""

from typing import ClassVar

import pytest
import torch
from contracts.readout_contract import NUM_FRAMES, NUM_VIDEOS, ClipReadoutContract, CoordinatesContract

from vfz.pipeline.errors import UsageError
from vfz.temporal.readouts import build_readout

pytestmark = pytest.mark.quick


class TestPoints(CoordinatesContract, ClipReadoutContract):
    task = "points"
    kwargs: ClassVar[dict] = {"readout_dim": 24, "num_heads": 4, "mlp_hidden": 20, "num_frames": NUM_FRAMES}
    inputs: ClassVar[dict] = {
        "query_xy": torch.rand(NUM_VIDEOS, 3, 2, generator=torch.Generator().manual_seed(3)),
        "query_frame": torch.tensor([[0, 5, 1], [3, 0, 0]]),
    }

    def shapes(self, batch_and_time, protocol):
        return {
            "xy": (*batch_and_time, 3, 2),
            "visibility_logit": (*batch_and_time, 3),
            "uncertainty_logit": (*batch_and_time, 3),
        }

    def by_frame(self, value):
        return value.transpose(1, 2)

    def test_the_answer_at_the_frame_of_the_query_is_the_query(self, readout, tokens):
        outputs = readout(tokens, **self.inputs)
        for video, frames in enumerate(self.inputs["query_frame"].tolist()):
            for query, frame in enumerate(frames):
                assert torch.equal(outputs["xy"][video, query, frame], self.inputs["query_xy"][video, query])
                assert outputs["visibility_logit"][video, query, frame] == 10
                assert outputs["uncertainty_logit"][video, query, frame] == -10
        assert (outputs["visibility_logit"] == 10).sum() == self.inputs["query_frame"].numel()

    def test_a_query_of_a_frame_outside_the_clip_overwrites_nothing(self, readout, tokens):
        outputs = readout(tokens, **{**self.inputs, "query_frame": self.inputs["query_frame"] - 100})
        assert (outputs["visibility_logit"] != 10).all()

    def test_a_point_is_answered_as_if_it_were_alone(self, readout, tokens):
        together = readout(tokens, **self.inputs)
        alone = readout(tokens, **{name: value[:, 1] for name, value in self.inputs.items()})
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][:, 1], rtol=0, atol=1e-5)

    def test_queries_of_other_shapes_are_refused_in_one_line(self, readout, tokens):
        with pytest.raises(
            UsageError, match=r"query_xy has shape \[2, 3, 2\] and query_frame \[2\]; pass \[B, 2\] and"
        ):
            readout(tokens, query_xy=self.inputs["query_xy"], query_frame=torch.zeros(2, dtype=torch.int64))

    def test_a_clip_of_an_odd_number_of_frames_is_refused_in_one_line(self, clip, tokens):
        with pytest.raises(
            UsageError, match="the points readout of a clip answers frames in pairs, and 5 is odd; pass 6"
        ):
            clip(tokens[:, :5], **self.inputs)


class TestPointsOneQueryAVideo(TestPoints):
    inputs: ClassVar[dict] = {name: value[:, 0] for name, value in TestPoints.inputs.items()}

    def shapes(self, batch_and_time, protocol):
        return {"xy": (*batch_and_time, 2), "visibility_logit": batch_and_time, "uncertainty_logit": batch_and_time}

    def by_frame(self, value):
        return value

    def test_the_answer_at_the_frame_of_the_query_is_the_query(self, readout, tokens):
        outputs, videos, frames = readout(tokens, **self.inputs), [0, 1], self.inputs["query_frame"]
        assert torch.equal(outputs["xy"][videos, frames], self.inputs["query_xy"])

    def test_a_point_is_answered_as_if_it_were_alone(self, readout, tokens):
        alone = readout(tokens, **{name: value.unsqueeze(1) for name, value in self.inputs.items()})
        for name, value in readout(tokens, **self.inputs).items():
            assert torch.equal(value, alone[name].squeeze(1))

    def test_queries_of_other_shapes_are_refused_in_one_line(self, readout, tokens):
        with pytest.raises(UsageError, match=r"query_xy has shape \[2, 3\] and query_frame \[2\]; pass \[B, 2\] and"):
            readout(tokens, query_xy=torch.zeros(2, 3), query_frame=self.inputs["query_frame"])


def test_a_clip_readout_of_an_odd_number_of_frames_is_refused():
    with pytest.raises(UsageError, match="the points readout of a clip answers frames in pairs, and 5 is odd; pass 6"):
        build_readout("points", dim=8, protocol="clip", num_frames=5)

"""Every registered readout keeps the contract; the two forms of the attention readout agree."""

import math
from typing import ClassVar

import pytest
import torch
from contracts.readout_contract import DIM, NUM_FRAMES, NUM_VIDEOS, ClipReadoutContract, ReadoutContract

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.layers import resize_time
from vfz.temporal.readouts import READOUTS, build_readout
from vfz.temporal.readouts.decoder import FourierQueryEncoder, Memory, QueryDecoder

# A bias on the keys adds the same to every score of a head, and softmax does not see it.
UNSEEN_BY_SOFTMAX = ("key_proj.bias",)


class TestClassify(ClipReadoutContract):
    task = "classify"
    kwargs: ClassVar[dict] = {"num_classes": 3, "readout_dim": 24, "num_heads": 4, "num_frames": NUM_FRAMES}
    zero_gradients = UNSEEN_BY_SOFTMAX

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 3) if protocol == "streaming" else (NUM_VIDEOS, 3)}

    def test_a_clip_readout_tells_the_order_of_frames(self, clip, tokens):
        assert not torch.allclose(clip(tokens), clip(tokens.flip(1)), atol=1e-6)


class TestDepth(ClipReadoutContract):
    task = "depth"
    kwargs: ClassVar[dict] = {"output_size": 16, "readout_dim": 24, "num_heads": 4, "num_frames": NUM_FRAMES}
    zero_gradients = UNSEEN_BY_SOFTMAX
    clip_takes_other_lengths = False

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 16, 16)}


class TestPose(ReadoutContract):
    task = "pose"
    kwargs: ClassVar[dict] = {"readout_dim": 24, "mlp_hidden": 20}

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 9)}


class TestPoseOfTokensAsWideAsTheReadout(TestPose):
    kwargs: ClassVar[dict] = {"readout_dim": DIM, "mlp_hidden": 20}


class TestBoxes(ReadoutContract):
    task = "boxes"
    kwargs: ClassVar[dict] = {"readout_dim": 24, "num_heads": 4, "mlp_hidden": 20}
    inputs: ClassVar[dict] = {"init_box_cxcywh": torch.rand(NUM_VIDEOS, 4, generator=torch.Generator().manual_seed(3))}
    sees_only_its_frame = False  # it also sees its own predictions at earlier frames

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 4)}

    def test_a_box_depends_on_earlier_frames_through_its_predictions(self, streaming, tokens):
        changed = tokens.clone()
        changed[:, 0] += torch.randn_like(changed[:, 0])
        before, after = self.run(streaming, tokens)[None], self.run(streaming, changed)[None]
        assert not torch.allclose(before[:, 1:], after[:, 1:], atol=1e-4)

    def test_no_gradient_passes_through_the_predictions(self, streaming, tokens):
        tokens.requires_grad_()
        streaming(tokens, **self.inputs)[:, 3].sum().backward()
        assert (tokens.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [False, False, False, True, False, False]

    def test_stepping_with_the_last_prediction_equals_the_full_pass(self, streaming, tokens):
        box = self.inputs["init_box_cxcywh"]
        for t, expected in enumerate(streaming(tokens, init_box_cxcywh=box).unbind(1)):
            box = streaming(tokens[:, t : t + 1], init_box_cxcywh=box)[:, 0]
            torch.testing.assert_close(box, expected, rtol=0, atol=1e-6)

    def test_init_boxes_that_are_no_boxes_are_refused_in_one_line(self, streaming, tokens):
        with pytest.raises(UsageError, match=r"init_box_cxcywh has shape \[2, 5\]; pass \[B, 4\] or \[B, objects, 4\]"):
            streaming(tokens, init_box_cxcywh=torch.zeros(NUM_VIDEOS, 5))


class TestBoxesOfSeveralObjects(TestBoxes):
    inputs: ClassVar[dict] = {
        "init_box_cxcywh": torch.rand(NUM_VIDEOS, 3, 4, generator=torch.Generator().manual_seed(3))
    }

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 3, 4)}

    def by_frame(self, value):
        return value.transpose(1, 2)

    def test_no_gradient_passes_through_the_predictions(self, streaming, tokens):
        tokens.requires_grad_()
        streaming(tokens, **self.inputs)[:, :, 3].sum().backward()
        assert (tokens.grad.abs().sum(dim=(0, 2, 3)) > 0).tolist() == [False, False, False, True, False, False]

    def test_stepping_with_the_last_prediction_equals_the_full_pass(self, streaming, tokens):
        boxes = self.inputs["init_box_cxcywh"]
        for t, expected in enumerate(streaming(tokens, init_box_cxcywh=boxes).unbind(2)):
            boxes = streaming(tokens[:, t : t + 1], init_box_cxcywh=boxes)[:, :, 0]
            torch.testing.assert_close(boxes, expected, rtol=0, atol=1e-6)

    def test_an_object_is_followed_as_if_it_were_alone(self, streaming, tokens):
        boxes = self.inputs["init_box_cxcywh"]
        together = streaming(tokens[:, :1], init_box_cxcywh=boxes)
        alone = streaming(tokens[:, :1], init_box_cxcywh=boxes[:, 1])
        torch.testing.assert_close(together[:, 1], alone, rtol=0, atol=1e-6)


class TestPoints(ClipReadoutContract):
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


def subclasses(cls):
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


def test_every_registered_readout_is_held_to_the_contract_in_every_protocol_it_has():
    contracts = {cls for cls in subclasses(ReadoutContract) if hasattr(cls, "task")}
    assert {cls.task for cls in contracts} == set(READOUTS.names())
    for cls in contracts:
        assert issubclass(cls, ClipReadoutContract) == ("clip" in READOUTS.get(cls.task).protocols)


def test_folding_the_projections_out_changes_nothing():
    torch.manual_seed(0)
    readout = build_readout("classify", dim=16, num_classes=3, readout_dim=24, num_heads=4)
    with torch.no_grad():
        readout.query.normal_()
        readout.key_proj.bias.normal_()
    tokens = torch.randn(5, 7, 16)
    folded, plain = readout._attend_folded(tokens), readout._attend(tokens)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 24])
@pytest.mark.parametrize("group_size", [1, 3])
def test_folding_the_projections_out_of_the_decoder_changes_nothing(dim, group_size):
    torch.manual_seed(0)
    decoder = QueryDecoder(dim, readout_dim=24, num_heads=4)
    with torch.no_grad():
        decoder.layer.multihead_attn.in_proj_bias.normal_()
    tokens, queries = torch.randn(2, 3, 50, dim), torch.randn(2, 2, group_size, 24)
    folded = Memory(tokens, is_projected=False)
    plain = decoder.prepare(tokens, num_queries=1000)
    assert plain.is_projected
    torch.testing.assert_close(decoder(queries, folded), decoder(queries, plain), rtol=0, atol=1e-5)


def test_the_decoder_projects_tokens_only_where_many_queries_pay_for_it():
    decoder = QueryDecoder(64, readout_dim=128, num_heads=4)
    tokens = torch.zeros(1, 2, 100, 64)
    assert not decoder.prepare(tokens, num_queries=1).is_projected
    assert decoder.prepare(tokens, num_queries=500).is_projected


def test_the_decoder_equals_the_layer_of_torch():
    torch.manual_seed(0)
    decoder = QueryDecoder(24, readout_dim=24, num_heads=4).eval()
    layer = torch.nn.TransformerDecoderLayer(24, 4, 96, dropout=0.0, norm_first=True, batch_first=True).eval()
    layer.load_state_dict(decoder.layer.state_dict())
    tokens, queries = torch.randn(2, 1, 7, 24), torch.randn(2, 1, 5, 24)
    ours = decoder(queries, decoder.prepare(tokens, num_queries=5))
    torch.testing.assert_close(
        ours[:, 0, 0], decoder.output_norm(layer(queries[:, 0], tokens[:, 0])), rtol=0, atol=1e-5
    )


def test_the_code_of_a_coordinate_is_sines_then_cosines_of_doubling_frequencies():
    code = FourierQueryEncoder(2, mlp_hidden=4, readout_dim=4).code(torch.tensor([0.25, 0.5]))
    assert code.shape == (64,)
    expected = [math.sin(math.pi / 4), 1.0, 0.0, 0.0]
    torch.testing.assert_close(code[:4], torch.tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(code[16:19], torch.tensor([math.cos(math.pi / 4), 0.0, -1.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(code[32:34], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", ["boxes", "points", "pose"])
def test_coordinates_keep_float32_under_autocast(task):
    contract = {"boxes": TestBoxes, "points": TestPoints, "pose": TestPose}[task]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = contract.run(contract.build("streaming"), torch.randn(2, 6, 5, DIM))
    assert {value.dtype for value in outputs.values()} == {torch.float32}


def test_a_time_embedding_is_interpolated_linearly_to_another_length():
    ramp = torch.arange(4.0).reshape(1, 4, 1).expand(1, 4, 3)
    assert torch.equal(resize_time(ramp, 4), ramp)
    doubled = resize_time(ramp, 8)
    assert doubled.shape == (1, 8, 3)
    torch.testing.assert_close(doubled[0, 1:7, 0], torch.arange(0.25, 3.0, 0.5))


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown readout 'clasify'; did you mean classify"):
        build_readout("clasify", dim=8)


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown protocol 'streming'; did you mean streaming"):
        build_readout("classify", dim=8, protocol="streming", num_classes=2)


def test_a_clip_readout_without_a_number_of_frames_is_refused():
    with pytest.raises(UsageError, match="clip protocol needs num_frames"):
        build_readout("classify", dim=8, protocol="clip", num_classes=2)


def test_readout_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UsageError, match="7 attention heads do not divide 24 channels"):
        build_readout("classify", dim=8, num_classes=2, readout_dim=24, num_heads=7)


@pytest.mark.parametrize("task", ["points", "depth"])
def test_a_clip_readout_of_an_odd_number_of_frames_is_refused(task):
    sizes = {"output_size": 16} if task == "depth" else {}
    with pytest.raises(UsageError, match=f"the {task} readout of a clip answers frames in pairs, and 5 is odd; pass 6"):
        build_readout(task, dim=8, protocol="clip", num_frames=5, **sizes)


@pytest.mark.parametrize("size", [4, 20])
def test_a_depth_map_that_is_not_made_of_patches_is_refused(size):
    with pytest.raises(
        UsageError, match=f"output_size is {size}; depth maps are made of patches, pass a multiple of 8"
    ):
        build_readout("depth", dim=8, output_size=size)


def test_a_size_that_is_missing_is_refused_by_name():
    with pytest.raises(UsageError, match=r"the depth readout needs output_size; pass output_size=\.\.\."):
        build_readout("depth", dim=8)

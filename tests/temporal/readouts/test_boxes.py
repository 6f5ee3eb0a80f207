"""Readout `boxes`: the contract, and what it sees of its own predictions."""

from typing import ClassVar

import pytest
import torch
from contracts.readout_contract import NUM_VIDEOS, CoordinatesContract, ReadoutContract

from vfz.pipeline.errors import UsageError

pytestmark = pytest.mark.quick


class TestBoxes(CoordinatesContract, ReadoutContract):
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

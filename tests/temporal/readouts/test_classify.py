"""Readout `classify` keeps the contract, also under the names of other tasks of K numbers a clip."""

from typing import ClassVar

import pytest
import torch
from contracts.readout_contract import NUM_FRAMES, NUM_VIDEOS, UNSEEN_BY_SOFTMAX, ClipReadoutContract

pytestmark = pytest.mark.quick


class TestClassify(ClipReadoutContract):
    task = "classify"
    kwargs: ClassVar[dict] = {"num_classes": 3, "readout_dim": 24, "num_heads": 4, "num_frames": NUM_FRAMES}
    zero_gradients = UNSEEN_BY_SOFTMAX

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 3) if protocol == "streaming" else (NUM_VIDEOS, 3)}

    def test_a_clip_readout_tells_the_order_of_frames(self, clip, tokens):
        assert not torch.allclose(clip(tokens), clip(tokens.flip(1)), atol=1e-6)


class TestMultilabel(TestClassify):
    task = "multilabel"


class TestRegression(TestClassify):
    task = "regression"

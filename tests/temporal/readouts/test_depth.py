"""Readout `depth` keeps the contract, and refuses maps and clips that it has no patches for."""

from typing import ClassVar

import pytest
from contracts.readout_contract import NUM_FRAMES, UNSEEN_BY_SOFTMAX, ClipReadoutContract

from vfz.pipeline.errors import UsageError
from vfz.temporal.readouts import build_readout

pytestmark = pytest.mark.quick


class TestDepth(ClipReadoutContract):
    task = "depth"
    kwargs: ClassVar[dict] = {"output_size": 16, "readout_dim": 24, "num_heads": 4, "num_frames": NUM_FRAMES}
    zero_gradients = UNSEEN_BY_SOFTMAX
    clip_takes_other_lengths = False

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 16, 16)}


@pytest.mark.parametrize("size", [4, 20])
def test_a_depth_map_that_is_not_made_of_patches_is_refused(size):
    with pytest.raises(
        UsageError, match=f"output_size is {size}; depth maps are made of patches, pass a multiple of 8"
    ):
        build_readout("depth", dim=8, output_size=size)


def test_a_clip_readout_of_an_odd_number_of_frames_is_refused():
    with pytest.raises(UsageError, match="the depth readout of a clip answers frames in pairs, and 5 is odd; pass 6"):
        build_readout("depth", dim=8, protocol="clip", num_frames=5, output_size=16)

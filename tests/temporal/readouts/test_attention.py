"""The attention readout: its two forms agree, and its time embedding stretches to other lengths."""

import pytest
import torch

from vfz.temporal.layers import resize_time
from vfz.temporal.readouts import build_readout

pytestmark = pytest.mark.quick


def test_folding_the_projections_out_changes_nothing():
    torch.manual_seed(0)
    readout = build_readout("classify", dim=16, num_classes=3, readout_dim=24, num_heads=4)
    with torch.no_grad():
        readout.query.normal_()
        readout.key_proj.bias.normal_()
    tokens = torch.randn(5, 7, 16)
    folded, plain = readout._attend_folded(tokens), readout._attend(tokens)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-5)


def test_a_time_embedding_is_interpolated_linearly_to_another_length():
    ramp = torch.arange(4.0).reshape(1, 4, 1).expand(1, 4, 3)
    assert torch.equal(resize_time(ramp, 4), ramp)
    doubled = resize_time(ramp, 8)
    assert doubled.shape == (1, 8, 3)
    torch.testing.assert_close(doubled[0, 1:7, 0], torch.arange(0.25, 3.0, 0.5))

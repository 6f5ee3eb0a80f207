"""Attention within a frame equals torch's own; dropout and stochastic depth act in training only."""

import pytest
import torch
from torch import nn

from vfz.temporal.layers import Attention, DropPath, SpatialBlock

pytestmark = pytest.mark.quick


def test_attention_loads_and_equals_multihead_attention():
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours = Attention(12, 3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, context = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    torch.testing.assert_close(ours(query), theirs(query, query, query)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours(query, context), theirs(query, context, context)[0], rtol=0, atol=1e-6)


def test_stochastic_depth_drops_whole_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    y = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (y == y[:, :1, :1]).all()
    assert abs(y.mean().item() - 1.0) < 0.05
    assert torch.equal(DropPath(0.25).eval()(y), y)


def test_a_spatial_block_is_random_in_training_only():
    torch.manual_seed(0)
    block = SpatialBlock(12, num_heads=3, dropout=0.1, drop_path=0.1)
    x = torch.randn(2, 3, 4, 12)
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_frames_do_not_see_one_another():
    torch.manual_seed(0)
    block = SpatialBlock(12, num_heads=3, dropout=0.1, drop_path=0.1).eval()
    x = torch.randn(2, 3, 4, 12)
    torch.testing.assert_close(block(x)[:, 1:2], block(x[:, 1:2]), rtol=0, atol=1e-6)

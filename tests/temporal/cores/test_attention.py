"""The core `attention`: what a window means, and that the order of frames is seen however long the stream."""

import pytest
import torch
import torch.nn.functional as F

from vfz.pipeline.errors import UsageError
from vfz.temporal.cores import build_core
from vfz.temporal.cores.attention import CausalAttention, rotate

pytestmark = pytest.mark.quick


def build(**kwargs):
    torch.manual_seed(0)
    return build_core("attention", dim=8, num_heads=2, **{"num_layers": 1, **kwargs}).eval()


def test_one_layer_sees_as_many_frames_as_its_window_has():
    tokens = torch.randn(1, 9, 2, 8, requires_grad=True)
    build(window=4)(tokens)[0][:, 7].sin().sum().backward()
    seen = tokens.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert seen.tolist() == [False] * 4 + [True] * 4 + [False]


def test_a_window_of_one_frame_is_no_memory():
    tokens = torch.randn(1, 5, 2, 8)
    core = build(window=1)
    alone = torch.stack([core.step(frame)[0] for frame in tokens.unbind(1)], 1)
    torch.testing.assert_close(core(tokens)[0], alone)


def test_the_order_of_past_frames_is_seen():
    tokens = torch.randn(1, 6, 2, 8)
    core = build()
    swapped = core(tokens[:, [1, 0, 2, 3, 4, 5]])[0]
    assert (core(tokens)[0] - swapped)[:, -1].abs().max() > 1e-3


@pytest.mark.parametrize("head_dim", [2, 5, 8])
def test_rotation_leaves_products_that_depend_on_distance_only(head_dim):
    q, k = torch.randn(2, 1, 1, 1, head_dim)
    products = [(rotate(q, start + 3) * rotate(k, start)).sum() for start in (0, 1, 50)]
    torch.testing.assert_close(products, [products[0]] * 3, rtol=1e-4, atol=1e-5)
    assert (products[0] - (rotate(q, 9) * rotate(k, 0)).sum()).abs() > 1e-4


def test_a_pass_equals_softmax_attention_written_out():
    torch.manual_seed(0)
    layer, u = CausalAttention(8, 2, 3), torch.randn(4, 10, 8)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.in_proj(u).chunk(3, -1))
    scores = rotate(q, 0) @ rotate(k, 0).mT / 2
    age = torch.arange(10)[:, None] - torch.arange(10)
    weights = scores.masked_fill((age < 0) | (age >= 3), -torch.inf).softmax(-1)
    expected = F.linear((weights @ v).transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias)
    torch.testing.assert_close(layer(u)[0], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_stream_is_as_exact_after_thousands_of_frames_as_at_its_start():
    core, clip, state = build(window=4), torch.randn(1, 4, 2, 8), None
    for _ in range(2000):
        _, state = core.step(torch.randn(1, 2, 8), state)
    for frame in clip.unbind(1):
        late, state = core.step(frame, state)
    torch.testing.assert_close(late, core(clip)[0][:, -1], rtol=1e-5, atol=1e-6)


def test_default_heads_leave_each_an_even_number_of_channels():
    heads = {dim: build_core("attention", dim=dim, num_layers=1).blocks[0].attn.num_heads for dim in (384, 64, 16, 7)}
    assert heads == {384: 16, 64: 16, 16: 8, 7: 1}


def test_heads_of_one_channel_and_windows_of_no_frame_are_refused():
    with pytest.raises(UsageError, match="16 heads leave 1 of 16 channels each; attention over time needs 2"):
        build_core("attention", dim=16, num_heads=16)
    with pytest.raises(UsageError, match="window is 0; attention needs at least 1 frame"):
        build_core("attention", dim=16, window=0)

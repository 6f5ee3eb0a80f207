"""The decoder of queries: its two forms agree with each other and with torch; the code of a coordinate."""

import math

import pytest
import torch

from vfz.temporal.readouts.decoder import FourierQueryEncoder, Memory, QueryDecoder

pytestmark = pytest.mark.quick


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

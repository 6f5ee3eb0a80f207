"""What the decoder of boxes and points costs, against torch's own layer over the projected tokens."""

import pytest
import torch
from helpers.measure import seconds_of

from vfz.temporal.readouts.decoder import QueryDecoder

pytestmark = pytest.mark.bench

NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM, WIDTH = 2, 16, 201, 384, 1024


@pytest.mark.parametrize(("what", "num_heads", "num_queries"), [("one box", 4, 1), ("64 points", 8, 64)])
def test_the_decoder_against_the_layer_of_torch(record, what, num_heads, num_queries):
    """A forward and backward pass over all frames at once, ViT-S tokens; a query sees no other query."""
    torch.manual_seed(0)
    decoder = QueryDecoder(DIM, readout_dim=WIDTH, num_heads=num_heads)
    layer = torch.nn.TransformerDecoderLayer(
        WIDTH, num_heads, 4 * WIDTH, dropout=0.0, norm_first=True, batch_first=True
    )
    layer.load_state_dict(decoder.layer.state_dict())
    tokens = torch.randn(NUM_VIDEOS, NUM_FRAMES, NUM_TOKENS, DIM)
    queries = torch.randn(NUM_VIDEOS, num_queries, 1, WIDTH)
    unseen = ~torch.eye(num_queries, dtype=torch.bool)

    def ours():
        return decoder(queries, decoder.prepare(tokens, num_queries=num_queries)).squeeze(3)

    def theirs():
        memory = decoder.projection(tokens).flatten(0, 1)
        rows = queries.transpose(1, 2).expand(-1, NUM_FRAMES, -1, -1).flatten(0, 1)
        return decoder.output_norm(layer(rows, memory, tgt_mask=unseen)).unflatten(0, (NUM_VIDEOS, NUM_FRAMES))

    torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-4)
    fast, plain = seconds_of(lambda: ours().sum().backward(), lambda: theirs().sum().backward(), rounds=5)
    record(
        f"decoder_{what.replace(' ', '_')}_vit_small",
        value=fast,
        unit="s/pass",
        baseline="torch.nn.TransformerDecoderLayer",
        baseline_value=plain,
    )

"""Where to look, as a query: the Fourier code of a box or point, through an MLP.

The code of a coordinate x in [0, 1] is sin and cos of 2^0 pi x .. 2^15 pi x (as in RVM, arXiv 2512.13684), computed in
float32 even under autocast: bfloat16 could not tell neighbouring pixels apart. At the highest frequency a change of
1e-7 in x already shows, so feeding predictions back through the code is chaotic.

Shape suffixes: C coordinates, K frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NUM_FREQUENCIES = 16


class FourierQueryEncoder(nn.Module):
    """Coordinates in [0, 1] -> Fourier code -> Linear, GELU, Linear -> Linear to the query's width.

    Args:
        num_coordinates: C; the code has 2 * 16 * C numbers.
        mlp_hidden: width of the MLP.
        readout_dim: width of the query.
    """

    freqs: Tensor

    def __init__(self, num_coordinates: int, *, mlp_hidden: int, readout_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2.0 ** torch.arange(NUM_FREQUENCIES))
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES * num_coordinates, mlp_hidden), nn.GELU(), nn.Linear(mlp_hidden, mlp_hidden)
        )
        self.to_query = nn.Linear(mlp_hidden, readout_dim)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates `[*, C]` -> queries `[*, readout_dim]`."""
        query: Tensor = self.to_query(self.mlp(self.code(coordinates)))
        return query

    def code(self, coordinates: Tensor) -> Tensor:
        """Per coordinate 16 sines and 16 cosines: `[*, C]` -> `[*, 32 C]`."""
        angles = coordinates.to(self.freqs.dtype).unsqueeze(-1) * (math.pi * self.freqs)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)

"""Tokens as the encoder gives them to tokens as they are stored, and what that costs in accuracy.

fp32 keeps every bit. fp16 rounds to 11 significant bits: a relative error of at most 2^-11 for values the format holds
(6e-5 to 65504). Larger ones become infinite here and the store refuses them: the video then fails by name.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vfz.pipeline.stores.records import Dtype

STORED_DTYPES: dict[str, Dtype] = {"fp32": "float32", "fp16": "float16"}


def to_stored(tokens: Tensor, precision: str) -> np.ndarray:
    """Tokens of any shape, on any device, as a NumPy array of the stored dtype."""
    stored: np.ndarray = tokens.to(getattr(torch, STORED_DTYPES[precision])).cpu().numpy()
    return stored

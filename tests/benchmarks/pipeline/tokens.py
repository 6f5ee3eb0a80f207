"""Seeded tokens [F, N, D] that stand for what encoders give, for the figures on precision."""

import numpy as np
import torch
from helpers.video_files import VIDEOS, decode_frames

from vfz.pipeline.encoder.model import load_encoder

TOKENS, DIM = 201, 1024
OUTLIERS, OUTLIER_FACTOR = 8, 15


def layernorm_like(*, seed, num_frames, degrees_of_freedom=None, num_tokens=TOKENS, dim=DIM):
    """Tokens as a ViT's last norm leaves them: each channel with its own mean and spread, a few 15 times as wide.

    Gaussian, or Student t. The channels are the same for every seed, only the tokens differ.
    """
    channels = np.random.default_rng(0)
    spread = np.exp(channels.normal(0, 0.3, dim))
    mean = channels.normal(0, 0.5, dim)
    spread[channels.choice(dim, OUTLIERS, replace=False)] *= OUTLIER_FACTOR
    random, shape = np.random.default_rng(seed), (num_frames, num_tokens, dim)
    z = random.standard_normal(shape) if degrees_of_freedom is None else random.standard_t(degrees_of_freedom, shape)
    return torch.from_numpy((z * spread + mean).astype(np.float32))


def efficientnet_tokens():
    """EfficientNet-Lite0's last layer on the sample videos at 6 frames a second: [92, 49, 1280], 87% zeros."""
    encoder = load_encoder("demo", layers=("final",))
    frames = [frame for name in ("bikes", "bigbuckbunny") for frame in decode_frames(VIDEOS / f"{name}.mp4", fps=6)]
    pixels = torch.stack([encoder.preprocess.resize_crop(frame.pixels_HWC) for frame in frames])
    return encoder.encode(pixels)["final"].patch_BND

"""What int8 and int4 cost: error and size for three kinds of tokens, calibrated on other frames than are measured."""

from dataclasses import dataclass

import torch
from benchmarks.pipeline.tokens import efficientnet_tokens, layernorm_like

from vfz.pipeline.stores.quantization import channel_stats, expand, relative_error, to_stored

CALIBRATION_FRAMES, MEASURED_FRAMES = 16, 48
# Most relative error allowed, by kind of tokens and precision; and most bytes in parts of fp16's.
LIMITS = {
    "LayerNorm-like, Gaussian": {"int8": 0.008, "int4": 0.105},
    "LayerNorm-like, Student t": {"int8": 0.011, "int4": 0.145},
    "EfficientNet-Lite0, final": {"int8": 0.03, "int4": 0.24},
}
SIZE_LIMITS = {"int8": 0.51, "int4": 0.27}


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One line of the table: `error` as `relative_error` has it, `bytes_ratio` of payload and scale to fp16."""

    name: str
    precision: str
    error: float
    limit: float
    bytes_ratio: float


def token_kinds(*, calibration_frames=CALIBRATION_FRAMES, measured_frames=MEASURED_FRAMES):
    """(name, sample to calibrate on, tokens to measure) of the two synthetic kinds."""
    for name, degrees_of_freedom in (("LayerNorm-like, Gaussian", None), ("LayerNorm-like, Student t", 6)):
        sample, tokens = (
            layernorm_like(seed=seed, num_frames=count, degrees_of_freedom=degrees_of_freedom)
            for seed, count in ((1, calibration_frames), (2, measured_frames))
        )
        yield name, sample, tokens


def efficientnet_kind():
    """The same of the real one: 16 frames drawn by seed, and all the others."""
    tokens = efficientnet_tokens()
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(3))
    return "EfficientNet-Lite0, final", tokens[order[:CALIBRATION_FRAMES]], tokens[order[CALIBRATION_FRAMES:]]


def measure(name, sample, tokens):
    """The rows of one kind of tokens."""
    stats = channel_stats(sample)
    for precision, limit in LIMITS[name].items():
        stored = to_stored(tokens, precision, stats)
        restored = expand(stored.payload, stored.scale, precision=precision, stats=stats, dim=tokens.shape[-1])
        yield PrecisionRow(
            name=name,
            precision=precision,
            error=relative_error(tokens, restored),
            limit=limit,
            bytes_ratio=(stored.payload.nbytes + stored.scale.nbytes) / (2 * tokens.numel()),
        )


def precision_rows():
    """The whole table."""
    for kind in (*token_kinds(), efficientnet_kind()):
        yield from measure(*kind)

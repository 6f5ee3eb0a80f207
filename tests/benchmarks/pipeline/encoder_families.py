"""Every family of timm (a file of `timm.models`) tried once with a small model of random weights; run as a script, it
writes the table in `pipeline/encoder/README.md`: `python tests/benchmarks/pipeline/encoder_families.py [FAMILY …]`.

A family works where vfz's tokens, of an inner layer and of `final`, are those that the live model gives.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from vfz.pipeline.encoder.layers import FINAL, VitReader
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.errors import VfzError

PAGE = Path(__file__).parents[3] / "pipeline" / "encoder" / "README.md"
HEADER = "| family | encoder tried | px | layers | tokens of a layer | `final` |"
SIZES = (32, 28, 64, 128, 224, None)
"""Sides of images in pixels; the model's own where it takes none of them."""


@dataclass(frozen=True)
class Row:
    """What came of one family: a line of the table."""

    family: str
    encoder: str
    px: str
    layers: str
    tokens: str
    final: str

    @property
    def works(self):
        return self.layers != "refused"

    def __str__(self):
        return f"| {self.family} | {self.encoder} | {self.px} | {self.layers} | {self.tokens} | {self.final} |"


def families():
    """The names of timm's families."""
    return timm.list_modules()


def smallest(family):
    """The model of a family with the fewest parameters."""
    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name, num_classes=0).parameters())
    return min(sizes, key=sizes.get)


def try_family(family, name):
    """A row; AssertionError where tokens are not those of the live model."""
    reasons = []
    for size in SIZES:
        try:
            encoder = load_encoder(name, image_size=size, random_weights=True, batch_size=2)
            break
        except VfzError as error:
            reasons.append(str(error))
    else:
        return Row(family, name, "", "refused", reasons[-1], "")
    px, num_layers = encoder.preprocess.image_size, len(encoder._model.forward_intermediates(_images(encoder), **ONLY))
    inner = str(num_layers // 2)
    tokens = check_tokens(name, size, inner)
    is_vit = isinstance(encoder._reader, VitReader)
    try:
        check_tokens(name, size, FINAL)
        final = "last block" if is_vit else "yes"
    except VfzError as error:
        final = str(error).partition("; ")[0].removeprefix(f"the final features of {name} are ").replace(name, "it")
    layers = f"{'blocks' if is_vit else 'stages'} 0 to {num_layers - 1}"
    return Row(family, name, str(px), layers, f"{inner}: {tokens}", final)


ONLY = {"indices": None, "intermediates_only": True}


def check_tokens(name, size, layer):
    """Compares vfz's tokens of a layer with those of a model that timm builds alone; returns their shape in words."""
    encoder = load_encoder(name, layers=(layer,), image_size=size, random_weights=True, batch_size=2)
    frames = torch.randint(256, (2, 3, *[encoder.preprocess.image_size] * 2), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))  # fmt: skip
    found = encoder.encode(frames)[layer]
    is_vit = isinstance(encoder._reader, VitReader)
    patch, prefix = live_tokens(encoder, encoder.preprocess.normalise(frames), layer, is_vit=is_vit)
    torch.testing.assert_close(found.patch_BND, patch, rtol=1e-4, atol=1e-4)
    assert (found.prefix_BPD is None) == (prefix is None)
    if prefix is not None:
        torch.testing.assert_close(found.prefix_BPD, prefix, rtol=1e-4, atol=1e-4)
    shape = encoder.shapes[layer]
    assert shape == found.shape
    return f"{f'{shape.num_prefix} + ' if shape.num_prefix else ''}{shape.num_patches} x {shape.dim}"


@torch.no_grad()
def live_tokens(encoder, images_BCHW, layer, *, is_vit):
    """Patch and prefix tokens as the model gives them by timm's public methods."""
    model = encoder._model
    if layer == FINAL:
        features = model.forward_features(images_BCHW)
        if is_vit:
            count = model.num_prefix_tokens
            if features.ndim == 4:  # NHWC
                return features.flatten(1, 2), None
            return features[:, count:], features[:, :count] if count else None
        if features.shape[-1] == model.num_features != features.shape[1]:  # NHWC
            features = features.permute(0, 3, 1, 2)
        assert features.shape[1] == model.num_features
        return features.flatten(2).transpose(1, 2), None
    options = {"norm": True, "return_prefix_tokens": model.num_prefix_tokens > 0} if is_vit else {}
    (stage,) = model.forward_intermediates(images_BCHW, indices=[int(layer)], intermediates_only=True, **options)
    stage, prefix = stage if isinstance(stage, tuple) else (stage, None)
    if not is_vit:
        assert stage.shape[1] == model.feature_info[int(layer)]["num_chs"]
    return stage.flatten(2).transpose(1, 2), prefix


def _images(encoder):
    size = encoder.preprocess.image_size
    return encoder.preprocess.normalise(torch.zeros(1, 3, size, size, dtype=torch.uint8))


def written_rows(text=None):
    """The rows of the table in the page, by family."""
    lines = (PAGE.read_text() if text is None else text).splitlines()
    start = lines.index(HEADER) + 2
    rows = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        row = Row(*(cell.strip() for cell in line.strip("|").split("|")))
        rows[row.family] = row
    return rows


def summary(rows):
    """The table in one sentence, which stands under it."""
    refused = sum(not row.works for row in rows)
    without = sum(row.works and row.final not in ("yes", "last block") for row in rows)
    return f"Of {len(rows)} families {len(rows) - refused} work and {refused} are refused; {without} have no `final`."


def write_rows(rows):
    """Puts a table with these rows in the place of the page's, at its end."""
    before, _, _ = PAGE.read_text().partition(HEADER)
    table = [HEADER, "|---" * HEADER.count("|", 1) + "|", *map(str, rows)]
    PAGE.write_text(before + "\n".join([*table, "", summary(rows), ""]))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="*", help="only these, the rest as written; default: all")
    wanted = parser.parse_args().family or families()
    rows = written_rows()
    for family in wanted:
        encoder = rows[family].encoder if family in rows else smallest(family)
        rows[family] = try_family(family, encoder)
        print(rows[family], file=sys.stderr, flush=True)
        write_rows(sorted(rows.values(), key=lambda row: row.family))


if __name__ == "__main__":
    main()

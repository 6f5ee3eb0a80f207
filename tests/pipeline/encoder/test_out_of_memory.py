"""A batch that does not fit into memory: fewer frames at a time, the same tokens, and it is told."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.extraction import Notes, all_tokens

from vfz.pipeline.encoder.layers import VitReader
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.engine.metrics import read_log
from vfz.pipeline.errors import EncoderError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions


@pytest.fixture
def options(folder_dataset, tmp_path):
    return ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="vit_tiny_patch16_224", random_weights=True, image_size=32,
        layers=("2",), precision="fp32", fps=2, batch_size=8, out=tmp_path / "caches",
    )  # fmt: skip


@pytest.fixture
def small_memory(monkeypatch):
    """The model refuses more frames than that, as a GPU does."""
    read = VitReader.read

    def limit(most):
        def refuse(self, images_BCHW):
            if len(images_BCHW) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return read(self, images_BCHW)

        monkeypatch.setattr(VitReader, "read", refuse)

    return limit


def test_a_batch_that_does_not_fit_is_halved_until_it_does(options, small_memory, tmp_path):
    whole = all_tokens(extract(options).cache)
    small_memory(3)
    notes = Notes()
    path = extract(dataclasses.replace(options, out=tmp_path / "small"), progress=notes).cache
    small = all_tokens(path)
    assert small.keys() == whole.keys()
    for video, arrays in whole.items():
        for key, tokens in arrays.items():
            found, expected = (np.frombuffer(data, np.float32) for data in (small[video][key], tokens))
            np.testing.assert_allclose(found, expected, atol=2e-5)
    (told,) = [line for line in notes.lines if "out of memory" in line]
    assert told.startswith("out of memory with 8 frames at a time: 2 from now on")
    lines, _ = read_log(tmp_path / "small" / path.rpartition("/")[2])
    assert {line["batch_size"] for line in lines} == {2}


def test_memory_for_no_frame_at_all_is_an_error(small_memory):
    encoder = load_encoder("vit_tiny_patch16_224", random_weights=True, image_size=32, layers=("2",), batch_size=4)
    small_memory(0)
    with pytest.raises(EncoderError, match="cpu has too little memory for vit_tiny_patch16_224 on a single frame"):
        encoder.encode(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))

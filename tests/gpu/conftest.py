"""Tests that need a GPU. Where there is none they are skipped; elsewhere, `pytest tests/gpu`."""

import pytest
import torch

CUDA = torch.device("cuda")


def pytest_collection_modifyitems(items):
    """Skips the tests of this folder where torch sees no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))

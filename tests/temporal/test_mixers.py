"""Layer mixers: what `last` returns, and which requests are refused."""

import pytest
import torch

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.mixers import build_mixer


def test_last_returns_the_last_layer_untouched():
    layers = [torch.randn(2, 3, 4, 8) for _ in range(3)]
    assert build_mixer("last", dim=8, num_layers=3)(layers) is layers[-1]


def test_another_number_of_layers_than_built_for_is_refused():
    with pytest.raises(UsageError, match="got 2 layers and was built for 3"):
        build_mixer("last", dim=8, num_layers=3)([torch.zeros(1, 1, 8)] * 2)


def test_a_mixer_of_no_layers_is_refused():
    with pytest.raises(UsageError, match="num_layers is 0"):
        build_mixer("last", dim=8, num_layers=0)


def test_an_unknown_mixer_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown mixer 'lst'; did you mean last"):
        build_mixer("lst", dim=8, num_layers=1)

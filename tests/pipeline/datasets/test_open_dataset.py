"""Opening a dataset by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.errors import UnknownNameError

pytestmark = pytest.mark.quick


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown dataset 'synthetik'; did you mean synthetic"):
        open_dataset("synthetik")


def test_naming_the_datasets_loads_neither_numpy_nor_pyav():
    code = "import sys, vfz.pipeline.datasets; assert not {'numpy', 'av', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

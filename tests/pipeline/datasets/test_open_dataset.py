"""Opening a dataset by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vfz.pipeline.datasets import open_dataset
from vfz.pipeline.errors import UnknownNameError, UsageError

pytestmark = pytest.mark.quick


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown dataset 'synthetik'; did you mean synthetic"):
        open_dataset("synthetik")


def test_a_path_as_the_kind_is_told_how_a_folder_is_named(tmp_path):
    with pytest.raises(UsageError, match=f"'{tmp_path}' is a path and .*; give --dataset folder --root {tmp_path}"):
        open_dataset(str(tmp_path))


def test_naming_the_datasets_loads_neither_numpy_nor_pyav():
    code = "import sys, vfz.pipeline.datasets; assert not {'numpy', 'av', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

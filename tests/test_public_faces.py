"""The public faces: names of `vfz.pipeline` and `vfz.temporal`, imported when they are first used."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

FACES = ("vfz.pipeline", "vfz.temporal", "vfz.temporal.probes", "vfz.temporal.reference")
HEAVY = ("torch", "timm", "av", "zarr", "numpy", "pyarrow", "rich", "matplotlib", "dask")
NAMES = [(face, name) for face in FACES for name in importlib.import_module(face).__all__]


@pytest.mark.parametrize("face", FACES)
def test_importing_a_face_imports_nothing_heavy(face):
    code = f"import sys, {face} as face; dir(face); sys.exit(', '.join({{*{HEAVY}}} & {{*sys.modules}}) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("face", "name"), NAMES)
def test_every_name_is_there_documented_and_named_in_the_docstring_of_its_face(face, name):
    module = importlib.import_module(face)
    assert inspect.getdoc(getattr(module, name))
    assert name in dir(module)
    assert f"`{name}`" in module.__doc__


@pytest.mark.parametrize("face", FACES)
def test_the_stub_lists_what_it_imports(face):
    stub = ast.parse(Path(importlib.import_module(face).__file__).with_suffix(".pyi").read_text())
    imported = [name.asname for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names]
    assert sorted(imported) == sorted(importlib.import_module(face).__all__)


def test_a_name_that_is_on_no_face_is_an_attribute_error():
    with pytest.raises(AttributeError, match="build_nothing"):
        _ = importlib.import_module("vfz.temporal").build_nothing


def test_a_cache_is_read_without_torch_encoder_decoder_or_datasets(tmp_path):
    """Opening, looking up and reading tokens; quantised ones are expanded by torch, which is imported then."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from vfz.pipeline import FeatureCache
cache = FeatureCache({cache!r})
row = cache.ok_videos()[0]
clip = cache.read(row.id, view=row.view)
assert clip.tokens(list(cache.layers)[0]).shape
heavy = {{"torch", "timm", "av", "torchvision"}} & {{*sys.modules}}
others = ("vfz.pipeline.encoder", "vfz.pipeline.decoding", "vfz.pipeline.datasets")
rooms = [name for name in sys.modules if name.startswith(others)]
sys.exit(f"{{heavy}} {{rooms}}" if heavy or rooms else 0)
"""
    cache = Path(__file__).parent / "golden/caches/v1/zarr-fp16"
    code = code.format(tests=str(Path(__file__).parent), cache=str(cache))
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

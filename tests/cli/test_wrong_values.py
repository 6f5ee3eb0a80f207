"""A wrong value of an option is answered at once: one line with the value, what is allowed or what to do, exit code 2.

`tests/benchmarks/test_cli_benchmarks.py` measures the same answers.
"""

import json
import subprocess
import sys

import pytest
from helpers.wrong_values import ROWS, arguments_of, prepare

from vfz.pipeline.config import COMMANDS
from vfz.pipeline.encoder import names
from vfz.pipeline.errors import UnknownNameError

SLOW = ("torch", "timm", "av", "dask")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """line -> (exit code, stderr, slow libraries imported until then), given by one process."""
    folder = tmp_path_factory.mktemp("wrong")
    prepare(folder)
    asked = {line: arguments_of(line, folder) for line, _, _ in ROWS}
    ran = subprocess.run(
        [sys.executable, "-c", _ANSWER], input=json.dumps(asked), cwd=folder, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


_ANSWER = f"""
import contextlib, io, json, sys
from vfz.cli.main import main
found = {{}}
for line, arguments in json.load(sys.stdin).items():
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    found[line] = [code, told.getvalue(), sorted({set(SLOW)!r} & set(sys.modules))]
print(json.dumps(found))
"""


@pytest.mark.parametrize(("line", "value", "words"), ROWS, ids=[line for line, _, _ in ROWS])
def test_a_wrong_value_is_one_line_that_says_what_to_do_before_torch_is_imported(answers, line, value, words):
    code, told, slow = answers[line]
    assert (code, slow) == (2, []), told
    assert told.startswith("vfz: error: ")
    assert told.count("\n") == 1, told
    assert value in told
    assert words in told


def test_every_command_is_given_wrong_values():
    assert {line.split()[0] for line, _, _ in ROWS} >= COMMANDS
    assert len(ROWS) >= 60


def test_the_names_that_are_known_without_timm_are_timms():
    import timm
    from timm.models import _registry
    from timm.optim import list_optimizers

    assert names.model_names() == set(timm.list_models())
    assert names.optimizer_names() == set(map(str, list_optimizers()))
    told = _refused([*_registry._model_pretrained_cfgs, *_registry._deprecated_models, "demo"])
    assert told == []


def test_a_name_that_is_registered_with_timm_by_others_is_known():
    """Where timm is imported it is asked itself."""
    import timm
    from timm.models import register_model

    def tiny_of_mine(pretrained=False, **options):
        return timm.create_model("test_vit", **options)

    tiny_of_mine.__module__ = "timm.models.vision_transformer"
    with pytest.raises(UnknownNameError, match="tiny_of_mine"):
        names.check_encoder_name("tiny_of_mine")
    register_model(tiny_of_mine)
    names.check_encoder_name("tiny_of_mine")


def _refused(asked):
    """Those that are refused by a process that has not imported timm."""
    code = """
import json, sys
from vfz.pipeline.encoder.names import check_encoder_name
from vfz.pipeline.errors import UsageError
refused = []
for name in json.load(sys.stdin):
    try:
        check_encoder_name(name)
    except UsageError:
        refused.append(name)
assert "timm" not in sys.modules
print(json.dumps(refused))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)

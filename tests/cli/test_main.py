"""The command line as a process: quick help, one line for an error, the right exit code."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vfz.pipeline.config import COMMANDS


def vfz(*arguments, cwd=None):
    return subprocess.run([sys.executable, "-m", "vfz.cli", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.quick
def test_help_lists_every_command_with_an_example():
    shown = vfz("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in COMMANDS)
    assert "Example" in shown.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(command):
    shown = vfz(command, "--help")
    assert shown.returncode == 0
    assert f"vfz {command}" in shown.stdout.split("Example:")[1]


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments", [["--help"], ["extract", "--help"], ["probe", "--help"], ["cache", "verify", "--help"]]
)
def test_help_imports_neither_torch_nor_anything_else_that_is_slow(arguments):
    code = (
        "import sys; from vfz.cli.main import main; main(sys.argv[1:]);"
        "slow = {'torch', 'timm', 'zarr', 'numpy', 'av', 'pydantic', 'dask'} & set(sys.modules);"
        "sys.stderr.write(repr(sorted(slow)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ran.stderr == "[]"


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert vfz("--version").stdout.strip().endswith(version("vfz"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extrac"], ["extrac", "did you mean extract"]),
        (["extract", "--datset", "synthetic"], ["--datset", "--dataset"]),
        (["extract"], ["--dataset"]),
        (["extract", "--encoder", "demo"], ["--dataset must be given"]),
        (["extract", "--dataset", "synthetic", "--batch-size", "0"], ["--batch-size 0", "least is 1"]),
        (["extract", "--dataset", "synthetic", "--precision", "int3"], ["int3", "fp32, fp16"]),
        (["extract", "--dataset", "synthetic", "--fps", "many"], ["--fps 'many'", "a number"]),
        (["extract", "--dataset", "synthetic", "--name", "../x"], ["'../x'", "letters"]),
        (["extract", "--dataset", "sintetic"], ["sintetic", "synthetic"]),
        (["extract", "--dataset", "folder"], ["--root"]),
        (["extract", "--dataset", "synthetic", "--config", "missing.toml"], ["missing.toml"]),
        (["train-temporal", "--cache", "nowhere"], ["nowhere"]),
        (["train-temporal"], ["no cache", "vfz extract"]),
        (["probe", "--device", "cuda:99", "--cache", "."], ["cuda:99"]),
    ],
)
def test_a_wrong_request_gets_one_clear_line_and_a_non_zero_code(arguments, words, tmp_path):
    ran = vfz(*arguments, cwd=tmp_path)
    assert ran.returncode in (1, 2)
    if arguments != ["extract"]:  # a command that needs options shows its help when it gets none
        assert ran.stderr.count("\n") == 1
        assert ran.stderr.startswith("vfz: error: ")
    assert "Traceback" not in ran.stderr
    assert all(word in ran.stderr for word in words), ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_exit_with_2_and_failures_with_1(tmp_path):
    assert vfz("train-temporal", cwd=tmp_path).returncode == 2
    for command in (["train-temporal"], ["probe"]):
        assert vfz(*command, "--cache", "nowhere", cwd=tmp_path).returncode == 2
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "vfz.json").write_text(json.dumps({"format_version": 1}))
    assert vfz("train-temporal", "--cache", "cache", cwd=tmp_path).returncode == 1


def test_a_traceback_is_shown_only_with_two_vs(tmp_path):
    wrong = ("extract", "--dataset", "synthetic", "--batch-size", "0")
    assert "Traceback" not in vfz(*wrong, "-v", cwd=tmp_path).stderr
    assert "Traceback" in vfz(*wrong, "-vv", cwd=tmp_path).stderr
    assert "Traceback" in vfz("-vv", *wrong, cwd=tmp_path).stderr


STORE = str(Path(__file__).parents[1] / "data" / "old_stores" / "zarr-fp16")
OUTPUTS = [["--help"], ["--version"], ["cache", "ls", STORE], ["cache", "ls", STORE, "--json"]]


def shell(line, arguments, **more):
    """A line of bash in which V is vfz with these arguments."""
    command = line.replace("V", shlex.join([sys.executable, "-m", "vfz.cli", *arguments]))
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, **more)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_output_to_a_full_disk_is_one_line_and_to_a_closed_pipe_none(arguments, unbuffered):
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    full = shell("V > /dev/full", arguments, env=environment)
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr.startswith("vfz: error: cannot write the output: no space left on device; what was finished")
    assert full.stderr.count("\n") == 1
    closed = shell("V | true", arguments, env=environment)
    assert (closed.returncode in (0, 1), closed.stderr) == (True, "")


def test_closed_and_full_streams_do_not_change_what_a_command_comes_to():
    assert shell("V >&-", ["cache", "ls", STORE]).returncode == 0
    for line in ("V 2>&-", "V 2>/dev/full"):
        ran = shell(line, ["cache", "ls", "nowhere"])
        assert (ran.returncode, ran.stdout + ran.stderr) == (2, "")


def test_letters_that_the_locale_does_not_have_are_escaped(tmp_path):
    (tmp_path / "Café").mkdir()
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = shell("V", ["cache", "info", "Größe"], cwd=tmp_path, env=environment)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("vfz: error: Gr")

"""The files under workflows/ run as they say, and the README tells the truth about files and flags."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vfz.pipeline.extraction.options import ExtractOptions
from vfz.temporal.probes.options import CompareOptions, DemoOptions, ProbeOptions
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.workflow import RunOptions

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "workflows/quickstart.toml"
README = (ROOT / "README.md").read_text()
OPTIONS = {
    "extract": ExtractOptions,
    "train-temporal": TrainOptions,
    "evaluate": EvaluateOptions,
    "probe": ProbeOptions,
    "probe compare": CompareOptions,
    "run": RunOptions,
    "demo": DemoOptions,
}


def test_quickstart_runs_the_three_commands_from_one_file(tmp_path):
    smaller = {"extract": ("--num-videos", "24", "--num-frames", "6"), "train-temporal": ("--epochs", "1"), "probe": ()}
    for command, flags in smaller.items():
        ran = subprocess.run(
            [sys.executable, "-m", "vfz.cli", command, "--config", QUICKSTART, *flags, "--json"],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        report = json.loads(ran.stdout)
    assert report["features"] == "runs/quickstart"
    assert {path.name for path in tmp_path.iterdir()} == {"caches", "data", "runs"}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_flag_of_a_command_in_the_readme_exists(command):
    known = {field.flag for field in OPTIONS[command].option_fields()} | {"--config", "--json", "--help"}
    lines = re.findall(rf"^ *(?:\w+=\S+ )*vfz {command} (?!compare)(.*(?:\\\n.*)*)", README, flags=re.MULTILINE)
    assert lines, f"the README shows vfz {command}"
    assert {flag for line in lines for flag in re.findall(r"--[a-z-]+", line)} <= known


def test_the_readmes_tree_names_every_file_and_no_other():
    tree = README.split("## The tree")[1].split("```")[1]
    named = {line.split()[0] for line in tree.splitlines() if line.split() and line.split()[0].endswith(".py")}
    present = {
        str(path.relative_to(ROOT))
        for package in ("pipeline", "temporal", "cli")
        for path in (ROOT / package).rglob("*.py")
        if path.name not in {"__init__.py", "__main__.py"}
    }
    assert named == present

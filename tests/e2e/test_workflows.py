"""The files under workflows/ run as they say, and their page says what is in them."""

import json
import re
import subprocess
import sys
from pathlib import Path

from vfz.temporal.workflow.file import read_workflow

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "workflows/quickstart.toml"
GUIDE = (ROOT / "workflows/README.md").read_text()


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


def test_a_workflow_may_be_run_one_core_at_a_time_and_then_as_a_whole(tmp_path):
    text = QUICKSTART.read_text().replace("epochs = 12", "epochs = 1")
    common, single = text.split("[train-temporal]")
    shared, _ = single.replace('core = "rvm_rnn"\n', "").replace('name = "quickstart"\n', "").split("[probe]")
    small = common + "num-videos = 24\nnum-frames = 6\n[defaults.train-temporal]\n" + shared
    cores = "".join(
        f'[[train-temporal]]\ncore = "{core}"\npaper = {{ metric = "top1", value = 0.5, source = "{core}" }}\n'
        for core in ("identity", "rvm_rnn")
    )
    (tmp_path / "cores.toml").write_text(small + cores + '[[probe]]\ntemporal = "cores-rvm_rnn-seed0"\n')

    def run(*flags):
        ran = subprocess.run(
            [sys.executable, "-m", "vfz.cli", "run", "cores.toml", *flags, "--json"],
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    first = run("--only", "identity")
    assert list(first["results"]) == ["train-temporal cores-identity-seed0"]
    whole = run()
    assert [stage["state"] for stage in whole["plan"]] == ["done", "done", "to do", "to do"]
    assert whole["results"].items() > first["results"].items()
    assert [figure["published"]["source"] for figure in whole["figures"]] == ["identity", "rvm_rnn"]
    assert all(isinstance(figure["measured"], float) for figure in whole["figures"])


def test_the_guide_to_workflows_has_the_figures_of_the_files():
    lines = GUIDE.split("## The paper's figures")[1].split("##")[0].splitlines()
    header, _, *rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    told = {
        (file, core): (metric, float(cell))
        for file, metric, *cells in rows
        for core, cell in zip(header[2:], cells, strict=True)
        if cell
    }
    present = {}
    for path in (ROOT / "workflows/paper").glob("*.toml"):
        workflow = read_workflow(path)
        for training, figure in zip(workflow.trainings, workflow.figures.values(), strict=True):
            present[path.name, training.core] = (figure.metric, figure.value)
    assert told == present


def test_the_guide_to_workflows_names_every_file_and_no_other():
    folder = ROOT / "workflows"
    present = {path.name for path in folder.rglob("*") if path.suffix in {".toml", ".sh"}}
    assert {name.rpartition("/")[2] for name in re.findall(r"[\w/]+\.(?:toml|sh)\b", GUIDE)} == present

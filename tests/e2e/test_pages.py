"""The pages tell the truth: their code runs, flags, files and links are there, the drawing is the import contract.

Blocks of `python` and `bash` run, page by page, in a folder with a small dataset and its cache.
Blocks of `text` are output, or need data or machines that are not here.
"""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from helpers.video_files import write_video

from vfz.cli import cache
from vfz.cli.main import main
from vfz.pipeline import config
from vfz.pipeline.config import Options
from vfz.pipeline.datasets import DATASETS
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.options import ConvertOptions, InfoOptions, LsOptions, RepairOptions, VerifyOptions
from vfz.pipeline.stores import STORES
from vfz.temporal.cores import CORES
from vfz.temporal.mixers import MIXERS
from vfz.temporal.probes import PROBES
from vfz.temporal.probes.options import CompareOptions, DemoOptions, ProbeOptions
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.workflow import RunOptions

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for name in ("README.md", "CONTRIBUTING.md", "pipeline/**/*.md", "temporal/**/*.md", "workflows/*.md", "tests/*.md")
    for path in [*ROOT.glob(name), *(ROOT.glob("tests/benchmarks/README.md") if name == "tests/*.md" else ())]
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
COMMANDS: dict[str, type[Options]] = {
    "extract": ExtractOptions,
    "train-temporal": TrainOptions,
    "evaluate": EvaluateOptions,
    "probe": ProbeOptions,
    "probe compare": CompareOptions,
    "run": RunOptions,
    "demo": DemoOptions,
    "cache ls": LsOptions,
    "cache info": InfoOptions,
    "cache verify": VerifyOptions,
    "cache repair": RepairOptions,
    "cache convert": ConvertOptions,
}
MOST_LINES_OF_THE_README = 200


def _blocks(text: str, *kinds: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(kind, code) for kind, code in found if kind in kinds]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with videos/, workflows/ and the cache that the pages make."""
    folder = tmp_path_factory.mktemp("pages")
    places = [(split, name) for split in ("train", "train", "train", "test") for name in ("walk", "run")]
    for number, (split, name) in enumerate(places):
        path = folder / "videos" / split / name / f"{number:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, range(0, 2000 + 100 * number, 80))
    (folder / "workflows").symlink_to(ROOT / "workflows")
    flags = ["--dataset", "folder", "--root", "videos", "--encoder", "demo", "--layers", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["extract", *flags]) == 0
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if _blocks((ROOT / name).read_text(), "python", "bash")])
def test_the_code_of_a_page_runs(name, prepared, tmp_path, monkeypatch):
    """In the order of the page; a Python block may use what an earlier one made."""
    text = (ROOT / name).read_text()
    shutil.copytree(prepared, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for kind, code in _blocks(text, "python", "bash"):
        if kind == "python":
            exec(compile(code, name, "exec"), namespace)  # noqa: S102 - the repository's own pages
        for command in _commands(code) if kind == "bash" else ():
            assert main(command) == 0, command


def _commands(code: str) -> list[list[str]]:
    """The arguments of every `vfz` of a block, which has nothing else but comments."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line]
    assert all(program == "vfz" for program, *_ in commands), f"only vfz commands run: {code}"
    return [arguments for _, *arguments in commands]


def test_a_block_that_is_marked_runs_or_says_why_not():
    kinds = {
        kind
        for path in PAGES
        for kind in re.findall(r"^```(\w*)\n(?:.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    }
    assert kinds <= {"python", "bash", "text", "toml"}


def test_every_command_is_looked_for():
    assert {name.partition(" ")[0] for name in COMMANDS} == config.COMMANDS
    assert {name.removeprefix("cache ") for name in COMMANDS if name.startswith("cache ")} == set(cache.COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_on_the_pages_exists(command):
    known = {field.flag for field in COMMANDS[command].option_fields()} | {"--config", "--json", "--help"}
    others = "|".join(other.removeprefix(f"{command} ") for other in COMMANDS if other.startswith(f"{command} "))
    unless = rf"(?!(?:{others})\b)" if others else ""
    pattern = rf"(?:^| |`)vfz {command} {unless}([^`\n#|]*(?:\\\n[^`\n#|]*)*)"
    lines = [line for path in PAGES for line in re.findall(pattern, path.read_text(), flags=re.MULTILINE)]
    assert lines or command in {"cache ls", "cache info", "cache verify", "demo"}, f"no page shows vfz {command}"
    assert {flag for line in lines for flag in re.findall(r"--[a-z-]+", line)} <= known


@pytest.mark.parametrize(
    ("parts", "options", "name", "page"),
    [
        (DATASETS, ExtractOptions, "dataset", "pipeline/datasets"),
        (STORES, ExtractOptions, "store", "pipeline/format"),
        (CORES, TrainOptions, "core", "temporal"),
        (MIXERS, TrainOptions, "mixer", "temporal"),
        (TASKS, TrainOptions, "task", "temporal"),
        (PROBES, ProbeOptions, "probe", "temporal/probes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_be_chosen_by_name_is_in_the_help_and_on_a_page(parts, options, name, page):
    (field,) = [field for field in options.option_fields() if field.name == name]
    assert set(parts) <= set(re.findall(r"\w+", field.info.help)) | set(field.info.choices or ())
    assert field.info.choices is None or set(field.info.choices) == set(parts)
    text = (ROOT / page / "README.md").read_text()
    assert set(parts) <= {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", code)}


@pytest.mark.parametrize("name", NAMES)
def test_files_and_links_of_a_page_are_there(name):
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    for path in re.findall(r"`((?:pipeline|temporal|cli|tests|workflows)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_is_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_THE_README


def test_the_drawing_of_the_pipeline_is_the_import_contract():
    page = (ROOT / "pipeline/README.md").read_text()
    (drawing,) = [code for kind, code in _blocks(page, "text") if code.startswith("maintenance")]
    floors = [set(re.split(r" \| ", re.split(r"  +", line)[0])) for line in drawing.splitlines()]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [found for found in contracts if found["name"] == "pipeline: one direction"]
    layers = [
        {part.strip().removeprefix("vfz.pipeline.") for part in re.split(r"[|:]", layer)}
        for layer in contract["layers"]
    ]
    assert floors[:-1] == layers[:-1]
    assert floors[-1] == {"ground"}
    ground = {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"}
    assert layers[-1] == ground
    rooms = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert set().union(*floors[:-1]) == rooms


def test_ci_calls_the_script_and_nothing_else():
    steps = re.findall(r"^\s*- (run|uses): (.*)$", (ROOT / ".github/workflows/ci.yml").read_text(), flags=re.MULTILINE)
    assert [what for kind, what in steps if kind == "run"] == ["bash .ci/run"]


def test_make_help_lists_every_target():
    printed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    assert [line.split()[0] for line in printed.stdout.splitlines()] == targets
    assert json.dumps(targets).count("quick") == 1

"""The pages tell the truth: their code runs, flags, files and links are there, the drawing is the import contract.

Blocks of `python` and `bash` run, page by page and line by line, in a folder with some of the demo's videos and their
cache; a shell takes the lines apart, globs and all. Blocks of `text` are output, or need data or machines that are not
here: their commands are parsed and checked, as those of `--help` are.
"""

import importlib
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from vfz.cli import cache
from vfz.cli.main import cli, main
from vfz.cli.options import Session
from vfz.pipeline import config, open_dataset
from vfz.pipeline.config import Options
from vfz.pipeline.datasets import DATASETS
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.options import (
    ConvertOptions,
    DropOptions,
    InfoOptions,
    LabelOptions,
    LsOptions,
    RepairOptions,
    VerifyOptions,
)
from vfz.pipeline.stores import STORES
from vfz.temporal.cores import CORES
from vfz.temporal.data.options import ExportOptions
from vfz.temporal.mixers import MIXERS
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.probes import PROBES
from vfz.temporal.probes.options import CompareOptions, CompareRunsOptions, DemoOptions, ProbeOptions
from vfz.temporal.tasks import TASKS
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.workflow.options import RunOptions

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
    "predict": PredictOptions,
    "probe": ProbeOptions,
    "probe compare": CompareOptions,
    "compare": CompareRunsOptions,
    "run": RunOptions,
    "demo": DemoOptions,
    "cache ls": LsOptions,
    "cache info": InfoOptions,
    "cache label": LabelOptions,
    "cache drop": DropOptions,
    "cache verify": VerifyOptions,
    "cache repair": RepairOptions,
    "cache convert": ConvertOptions,
    "cache export": ExportOptions,
}
MOST_LINES_OF_THE_README = 200


def _blocks(text: str, *kinds: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(kind, code) for kind, code in found if kind in kinds]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with videos/ (a few of the demo's), workflows/ and the cache that the pages make."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "workflows").symlink_to(ROOT / "workflows")
    open_dataset("synthetic", root=folder / "videos", num_videos=24, num_frames=6, size=64)
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
        for line in _lines(code) if kind == "bash" else ():
            program, *arguments = _words(line)
            assert program == "vfz", f"only vfz commands run: {line}"
            assert main(arguments) == 0, line
    if name == "README.md":
        shown = [
            *map(_help_lines, COMMANDS),
            *(_lines(code) for page in PAGES for _, code in _blocks(page.read_text(), "text")),
        ]
        globs = {word for lines in shown for line in lines for word in re.findall(r"\bruns/\S*\*\S*", line)}
        assert globs
        assert [glob for glob in globs if not list(tmp_path.glob(glob))] == []


def _lines(code: str) -> list[str]:
    """The lines of a block of shell that are not only comments; one that goes on below is one."""
    lines = [line.strip() for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _words(line: str) -> list[str]:
    """What a shell makes of a line in the working directory: words. A glob that fits nothing fails."""
    shell = ["bash", "-c", f"shopt -s failglob; printf '%s\\0' {line}"]
    ran = subprocess.run(shell, capture_output=True, text=True)
    assert ran.returncode == 0, f"{line}: {ran.stderr}"
    return ran.stdout.rstrip("\0").split("\0")


def _check_line(line: str) -> None:
    """Sees that the command of a line is there, and its flags, and that it takes their values."""
    words = _words(re.sub(r"#.*", "", line.replace("*", "X")))
    words = words[words.index("vfz.cli") if "vfz.cli" in words else words.index("vfz") :][1:]
    command, name = cli, ""
    while isinstance(command, click.Group) and words and words[0] in command.list_commands(None):
        name = f"{name} {words[0]}".strip()
        command = command.get_command(None, words.pop(0))
    is_whole = "…" not in words
    arguments = [word for word in words if word != "…"]
    with command.make_context(name, arguments, obj=Session(), resilient_parsing=False) as context:
        given = {key: value for key, value in context.params.items() if value not in (None, ())}
    config, _, _ = (given.pop(key, None) for key in ("config", "as_json", "verbose"))
    if config is not None:
        COMMANDS[name].from_toml(ROOT / config, command=name.replace(" ", "."), overrides=given)
    elif is_whole:
        COMMANDS[name].from_mapping(given, where=line)
    else:
        COMMANDS[name].check_some(given, where=line)


_LINES_THAT_DO_NOT_RUN = [
    (name, line)
    for name in NAMES
    for kind, code in _blocks((ROOT / name).read_text(), "text")
    for line in _lines(code)
    if re.match(rf"(?:\w+=\S+ )*(?:vfz|torchrun .* -m vfz\.cli) +(?:{'|'.join(sorted(config.COMMANDS))}) [^:]*$", line)
]


@pytest.mark.parametrize(("name", "line"), _LINES_THAT_DO_NOT_RUN)
def test_a_line_that_needs_other_data_is_a_command_that_vfz_takes(name, line):
    _check_line(re.sub(r"^(?:\w+=\S+ )*", "", line).replace("$SLURM_ARRAY_TASK_ID", "3"))


def test_the_commands_inside_scripts_are_commands_that_vfz_takes():
    scripts = "".join(path.read_text() for path in (ROOT / "workflows").glob("*.sh"))
    lines = re.findall(r"^(vfz .*)$|--wrap \"(vfz [^\"]*)\"", scripts, flags=re.MULTILINE)
    assert len(lines) >= 4
    values = {"$CONFIG": "workflows/k400.toml", "$ROOT": "videos", "$scheduler": "tcp://host:8786", "$SHARES": "8"}
    for line in map("".join, lines):
        for variable, value in (values | {"\\$SLURM_ARRAY_TASK_ID": "0"}).items():
            line = line.replace(variable, value)
        _check_line(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_the_help_of_a_command_are_commands_that_vfz_takes(name):
    lines = _help_lines(name)
    assert lines
    for line in lines:
        _check_line(re.sub(r"^(?:\w+=\S+ )*", "", line))


def _help_lines(name: str) -> list[str]:
    """The examples of a command."""
    command = cli
    for part in name.split():
        command = command.get_command(None, part)
    return _lines(command.epilog.partition("Example:\n")[2])


def test_what_python_in_a_block_of_text_imports_is_there():
    blocks = [code for name in NAMES for _, code in _blocks((ROOT / name).read_text(), "text")]
    lines = [found for code in blocks for found in re.findall(r"^from (vfz[\w.]*) import (.*)$", code, re.MULTILINE)]
    assert lines
    assert all(hasattr(importlib.import_module(module), name) for module, names in lines for name in names.split(", "))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_says_to_make_is_a_target(name):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    assert set(re.findall(r"^    make (\w+)", (ROOT / name).read_text(), flags=re.MULTILINE)) <= set(targets)


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

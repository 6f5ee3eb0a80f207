"""`vfz compare` and `vfz probe compare` on real runs and probes of real caches, and the page in a real browser."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vfz.cli.main import main
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.run import probe
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.training.train import train_temporal

CORES = ("identity", "gmmix", "rvm_rnn")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync")


@pytest.fixture(scope="module")
def probes(synthetic_cache, tmp_path_factory):
    """Folders of probes: tokens in two precisions, and what three cores make of them."""
    out = tmp_path_factory.mktemp("compared")
    small = convert(ConvertOptions(cache=synthetic_cache.path, out=out / "caches", precision="int8"))
    asked = {
        "tokens-fp16": {"cache": synthetic_cache.path},
        "tokens-int8": {"cache": small.cache},
    }
    for core in CORES:
        run = train_temporal(
            TrainOptions(
                cache=(synthetic_cache.path,), core=core, core_dim=32, num_layers=1, num_heads=2, readout_dim=32,
                readout_heads=2, clip_frames=6, epochs=1, tensorboard=False, out=out / "runs", name=core,
            )
        )  # fmt: skip
        asked[f"{core}-linear"] = {"cache": synthetic_cache.path, "temporal": run.run}
    for name, options in asked.items():
        probe(ProbeOptions(clip_frames=6, out=out / "probes", name=name, **options))
    return [out / "probes" / name for name in asked]


@pytest.fixture(scope="module")
def runs(probes):
    """The runs that were probed, one of them evaluated on the training split, too, and beside them what is none."""
    folder = probes[0].parents[1] / "runs"
    evaluated = evaluate(EvaluateOptions(run=folder / "gmmix", split="train"))
    assert evaluated.kept is not None
    stopped = shutil.copytree(folder / "gmmix", folder / "stopped")
    record = json.loads((stopped / "run.json").read_text())
    (stopped / "run.json").write_text(json.dumps(record | {"finished": False}))
    old = shutil.copytree(folder / "gmmix", folder / "of-an-older-vfz")
    shutil.rmtree(old / "evaluations")
    (folder / "notes").mkdir()
    return folder


def vfz(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "vfz.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def compare(probes, *flags):
    return vfz("probe", "compare", *probes, *flags)


@pytest.fixture(scope="module")
def compared(probes, tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison")
    ran = compare(probes, "--out", out, "--name", "all")
    assert ran.returncode == 0, ran.stderr
    return out / "all", ran.stdout


def test_tables_on_the_console_and_in_files_say_the_same(probes, compared):
    folder, shown = compared
    found = json.loads((folder / "comparison.json").read_text())
    assert [row["name"] for row in found["probes"]] == [path.name for path in probes]
    assert found["baseline"] == "tokens-fp16"
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    for row, figures, path in zip(rows, found["probes"], probes, strict=True):
        report = json.loads((path / "probe.json").read_text())["report"]
        assert float(row["top1"]) == figures["top1"] == report["top1"]
        assert f"{100 * report['top1']:.1f}%" in shown
        assert figures["num_videos"] == figures["num_planned"] == 12
    assert [row["precision"] for row in rows] == ["fp16", "int8", "fp16", "fp16", "fp16"]
    assert [row["core"] for row in rows] == ["", "", *CORES]
    assert sum(map(sum, found["confusions"]["gmmix-linear"])) == 12


def test_json_is_the_only_thing_on_stdout_when_asked_for(probes, tmp_path):
    ran = compare(probes[:2], "--out", tmp_path, "--json")
    assert json.loads(ran.stdout)["against"].keys() == {"tokens-int8"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "nowhere2"], "nowhere is no result of vfz probe; nowhere2 is"),
        ([], "RUNS is missing: Folders that vfz probe has written"),
        (["--baseline", "x"], "--baseline x is none of what is compared"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_usage_error(probes, arguments, words, tmp_path):
    ran = compare([*probes[:2], *arguments] if arguments[:1] == ["--baseline"] else arguments, "--out", tmp_path)
    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_one_odd_folder_among_probes_is_named_and_left_out(probes, runs, tmp_path):
    ran = compare(
        [probes[0], runs / "notes", runs / "gru", runs / "gmmix", probes[1], probes[0]], "--out", tmp_path, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [row["name"] for row in found["probes"]] == [path.name for path in probes[:2]]
    reasons = [one["reason"] for one in found["left_out"]]
    for reason, words in zip(
        reasons,
        ["no result of vfz probe", "no result of vfz probe", "vfz compare takes those", "is given twice"],
        strict=True,
    ):
        assert words in reason


@pytest.fixture(scope="module")
def compared_runs(runs, tmp_path_factory):
    """`vfz compare runs/*` where the runs lie, as a shell spells it out."""
    out = tmp_path_factory.mktemp("comparison")
    ran = vfz(
        "compare", *sorted(path.relative_to(runs.parent) for path in runs.iterdir()), "--out", out, cwd=runs.parent
    )
    assert ran.returncode == 0, ran.stderr
    return out / "comparison", ran.stdout


def test_runs_are_compared_as_they_were_evaluated_each_split_on_its_own(compared_runs, runs):
    folder, shown = compared_runs
    found = json.loads((folder / "comparison.json").read_text())
    test, train = sorted(found["groups"], key=lambda group: group["split"])
    assert [row["name"] for row in test["results"]] == sorted(CORES)
    assert [row["name"] for row in train["results"]] == ["gmmix"]
    assert (test["baseline"], list(test["against"])) == ("gmmix", ["identity", "rvm_rnn"])
    for row in test["results"]:
        result = json.loads((runs / row["name"] / "run.json").read_text())["result"]
        for name in ("top1", "balanced_accuracy", "num_parameters"):
            assert row[name] == result[name]
        assert row["epoch_seconds"] == pytest.approx(sum(result["epoch_seconds"]) / len(result["epoch_seconds"]))
        assert row["low"] < row["top1"] < row["high"] or row["low"] == row["top1"] == 0
        assert f"{100 * row['balanced_accuracy']:.1f}%" in shown
        assert row["cache_bytes"] > 0
    assert all(one["num_videos"] == 12 for one in test["against"].values())
    assert "classify on test" in shown
    assert "classify on train" in shown


def test_what_is_no_finished_and_evaluated_run_is_named_with_the_reason(compared_runs):
    folder, shown = compared_runs
    left_out = {
        Path(one["name"]).name: one["reason"]
        for one in json.loads((folder / "comparison.json").read_text())["left_out"]
    }
    assert left_out.keys() == {"stopped", "of-an-older-vfz", "notes"}
    assert "not trained to its end" in left_out["stopped"]
    assert "vfz evaluate runs/of-an-older-vfz makes one" in left_out["of-an-older-vfz"]
    assert "neither a run of vfz train-temporal nor a result of vfz probe" in left_out["notes"]
    assert all(reason in shown for reason in left_out.values())


def test_names_are_taken_and_probes_stand_among_runs(runs, probes, tmp_path, monkeypatch, capsys):
    for folder, name in ((probes[0], "tokens"), (runs / "gmmix", "gmmix")):
        shutil.copytree(folder, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "tokens", "gmmix", "--baseline", "gmmix", "--json"]) == 0
    test = json.loads(capsys.readouterr().out)["groups"][0]
    assert [(row["name"], row["probe"]) for row in test["results"]] == [("tokens", "linear"), ("gmmix", "run")]
    assert test["baseline"] == "gmmix"
    assert test["against"]["tokens"]["num_videos"] == 12


def test_nothing_to_compare_is_one_line_with_every_reason(runs, tmp_path, capsys):
    assert main(["compare", str(runs / "notes"), str(runs / "stopped"), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for words in ("nothing to compare", "neither a run of vfz train-temporal nor", "not trained to its end"):
        assert words in line


@pytest.fixture(scope="module")
def browser():
    """Chromium."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have Chromium: .ci/run installs it")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def opened(browser, file):
    """A page in it, with every request it made and every complaint of its scripts."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.requests, page.complaints = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.goto(file.as_uri())
    return page


@pytest.fixture(scope="module")
def page(browser, compared):
    return opened(browser, compared[0] / "comparison.html")


def test_the_page_of_runs_has_a_table_for_every_split_and_names_what_is_left_out(browser, compared_runs):
    page = opened(browser, compared_runs[0] / "comparison.html")
    assert len(page.requests) == 1
    assert page.complaints == []
    titles = [title.inner_text() for title in page.query_selector_all("section h2")]
    assert sorted(titles) == ["classify on test", "classify on train"]
    sections = dict(zip(titles, page.query_selector_all("section"), strict=True))
    rows = {title: len(section.query_selector_all(".results tbody tr")) for title, section in sections.items()}
    assert rows == {"classify on test": 3, "classify on train": 1}
    against = {title: len(section.query_selector_all(".against tbody tr")) for title, section in sections.items()}
    assert against == {"classify on test": 2, "classify on train": 0}
    assert page.locator("#left-out li").count() == 3


def test_the_page_loads_nothing_from_anywhere_and_no_script_fails(page, compared):
    assert page.requests == [(compared[0] / "comparison.html").as_uri()]
    assert page.complaints == []


def test_the_page_shows_every_probe_with_its_accuracy(page, compared):
    found = json.loads((compared[0] / "comparison.json").read_text())
    rows = [row.inner_text().split("\t") for row in page.query_selector_all(".results tbody tr")]
    assert [row[0].strip() for row in rows] == [row["name"] for row in found["probes"]]
    for row, figures in zip(rows, found["probes"], strict=True):
        assert f"{100 * figures['top1']:.1f}%" in [cell.strip() for cell in row]
    assert page.locator(".against tbody tr").count() == len(rows) - 1
    assert page.locator("details.confusion").count() == len(rows)


def test_a_click_on_a_column_sorts_by_it(page):
    def column():
        return [
            float(cell.get_attribute("data-key")) for cell in page.query_selector_all(".results tbody td:nth-child(7)")
        ]

    head = page.locator(".results th").nth(6)
    head.click()
    assert column() == sorted(column())
    head.click()
    assert column() == sorted(column(), reverse=True)
    assert page.complaints == []


def test_the_charts_are_really_drawn(page, tmp_path):
    """The picture of the accuracies has a bar in the bars' colour for every probe above zero."""
    import numpy as np
    from PIL import Image

    page.locator(".figure-chart").screenshot(path=tmp_path / "chart.png")
    pixels = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB")).astype(int)
    is_bar = (np.abs(pixels - [0x44, 0x77, 0xAA]) < 12).all(axis=-1)
    rows = np.flatnonzero(is_bar.sum(axis=1) > 3)
    num_bars = 1 + int(
        (np.diff(rows) > 6).sum()
    )  # the line of an interval parts a bar by less than the space between two
    above_zero = [
        float(cell.get_attribute("data-key")) > 0 for cell in page.query_selector_all(".results tbody td:nth-child(7)")
    ]
    assert num_bars == sum(above_zero)

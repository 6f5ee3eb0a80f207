"""`vfz probe compare` on real probes of real caches, and its page in a real browser."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.run import probe
from vfz.temporal.training.options import TrainOptions
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


def compare(probes, *flags):
    return subprocess.run(
        [sys.executable, "-m", "vfz.cli", "probe", "compare", *map(str, probes), *flags], capture_output=True, text=True
    )


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
        (["nowhere", "nowhere2"], "nowhere is no result of vfz probe"),
        ([], "RUNS is missing: Folders that vfz probe has written."),
        (["--baseline", "x"], "--baseline x is none of the compared probes"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_usage_error(probes, arguments, words, tmp_path):
    ran = compare([*probes[:2], *arguments] if arguments[:1] == ["--baseline"] else arguments, "--out", tmp_path)
    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.fixture(scope="module")
def page(compared):
    """The page in Chromium, with every request it made and every complaint of its scripts."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have Chromium: .ci/run installs it")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1300, "height": 1000})
        opened.requests, opened.complaints = [], []
        opened.on("request", lambda request: opened.requests.append(request.url))
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.on("console", lambda message: opened.complaints.append(message.text))
        opened.goto((compared[0] / "comparison.html").as_uri())
        yield opened
        browser.close()


def test_the_page_loads_nothing_from_anywhere_and_no_script_fails(page, compared):
    assert page.requests == [(compared[0] / "comparison.html").as_uri()]
    assert page.complaints == []


def test_the_page_shows_every_probe_with_its_accuracy(page, compared):
    found = json.loads((compared[0] / "comparison.json").read_text())
    rows = [row.inner_text().split("\t") for row in page.query_selector_all("#probes tbody tr")]
    assert [row[0].strip() for row in rows] == [row["name"] for row in found["probes"]]
    for row, figures in zip(rows, found["probes"], strict=True):
        assert f"{100 * figures['top1']:.1f}%" in [cell.strip() for cell in row]
    assert page.locator("#against tbody tr").count() == len(rows) - 1
    assert page.locator("details.confusion").count() == len(rows)


def test_a_click_on_a_column_sorts_by_it(page):
    def column():
        return [
            float(cell.get_attribute("data-key")) for cell in page.query_selector_all("#probes tbody td:nth-child(7)")
        ]

    head = page.locator("#probes th").nth(6)
    head.click()
    assert column() == sorted(column())
    head.click()
    assert column() == sorted(column(), reverse=True)
    assert page.complaints == []


def test_the_charts_are_really_drawn(page, tmp_path):
    """The picture of the accuracies has a bar in the bars' colour for every probe above zero."""
    import numpy as np
    from PIL import Image

    page.locator("#accuracy-chart").screenshot(path=tmp_path / "chart.png")
    pixels = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB")).astype(int)
    is_bar = (np.abs(pixels - [0x44, 0x77, 0xAA]) < 12).all(axis=-1)
    rows = np.flatnonzero(is_bar.sum(axis=1) > 3)
    num_bars = 1 + int(
        (np.diff(rows) > 6).sum()
    )  # the line of an interval parts a bar by less than the space between two
    above_zero = [
        float(cell.get_attribute("data-key")) > 0 for cell in page.query_selector_all("#probes tbody td:nth-child(7)")
    ]
    assert num_bars == sum(above_zero)

"""A stranger's first hour, as a script: from a folder of videos to answers about a new one, within a budget.

Sixty clips, cut from the real videos beside the tests, lie as `<class>/<video>` and have no splits; the encoder is the
demo's, with real weights. Commands and seconds are printed (`pytest -s`).
"""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.extraction import num_ok
from helpers.processes import wait_until
from helpers.video_files import ffmpeg

REAL = Path(__file__).parents[1] / "data/videos"
MOST_COMMANDS = 12
MOST_SECONDS = 240

EXTRACT = "extract --dataset folder --root videos --encoder demo --json"
NOTEBOOK = """
from sklearn.linear_model import LogisticRegression
from vfz.pipeline import FeatureCache
from vfz.temporal import load_model, to_numpy

cache = FeatureCache("{cache}", labels="scene")
clip = cache.read("ride/000", frames=slice(0, 8, 2))
X, y, ids = to_numpy(cache, "train")
score = LogisticRegression(max_iter=1000).fit(X, y).score(*to_numpy(cache, "test")[:2])
model, record = load_model("gmmix")
print(clip.tokens().shape, X.shape, cache.class_names, score, type(model).__name__)
"""


class Stranger:
    """Who types commands in a folder, and counts them and what they take."""

    def __init__(self, folder):
        self.folder = folder
        self.taken = []  # of commands: what was typed, and seconds

    @property
    def seconds(self):
        return sum(seconds for _, seconds in self.taken)

    def types(self, line):
        """A line of `vfz`; what it prints."""
        return self._work(f"vfz {line}", ("-m", "vfz.cli", *line.split()))

    def runs(self, code):
        """Lines of a notebook; what they print."""
        return self._work("python", ("-c", code))

    def stops(self, line, when):
        """A line of `vfz` that is answered with ^C once it shows something; its exit code and last words."""
        code, _, told = self._count(f"vfz {line} ^C", ("-m", "vfz.cli", *line.split()), until=when)
        return code, told.splitlines()[-1]

    def _work(self, typed, arguments):
        code, shown, told = self._count(typed, arguments)
        assert code == 0, told
        return shown

    def _count(self, typed, arguments, until=None):
        started = time.perf_counter()
        told = self.folder / f"{len(self.taken)}.stderr"
        with told.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, stdout=subprocess.PIPE, stderr=file, text=True,
                start_new_session=True,
            )  # fmt: skip
        if until is not None:
            wait_until(lambda: re.search(until, told.read_text()) or process.poll() is not None, seconds=120)
            os.killpg(process.pid, signal.SIGINT)
        shown, _ = process.communicate(timeout=300)
        self.taken.append((typed, time.perf_counter() - started))
        return process.returncode, shown, told.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first-hour")
    for number in range(20):
        for name, video, step, filters in (
            ("bunny", "bigbuckbunny.mp4", 0.1, "scale=320:-2"),
            ("ride", "bikes.mp4", 0.35, "scale=320:-2"),
            ("ride-backwards", "bikes.mp4", 0.35, "scale=320:-2,reverse"),
        ):
            _cut(video, step * number, filters, folder / "videos" / name / f"{number:03d}.mp4")
    _cut("bigbuckbunny.mp4", 2.05, "scale=480:-2", folder / "new.mp4")
    with (folder / "scenes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label"))
        for path in sorted((folder / "videos").rglob("*.mp4")):
            scene = "drawn" if path.parent.name == "bunny" else "filmed"
            table.writerow((path.relative_to(folder / "videos"), scene))
    return folder


def _cut(video, start, filters, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ("-ss", start, "-t", 3, "-i", REAL / video)
    ffmpeg(*source, "-vf", filters, "-an", "-c:v", "libx264", "-preset", "ultrafast", path)


def test_a_strangers_first_hour(folder, capsys):
    stranger = Stranger(folder)

    code, last_words = stranger.stops(EXTRACT, when=r"extracting: [1-9]\d*/60 videos")
    assert (code, "what was finished is kept" in last_words) == (130, True)
    (cache,) = (folder / "caches").iterdir()
    kept = num_ok(cache)
    assert 0 < kept < 60
    whole = json.loads(stranger.types(EXTRACT))
    assert (whole["num_ok"], whole["new_videos"]) == (60, 60 - kept)

    stranger.types("cache label --from scenes.csv --name scene")
    for core in ("gmmix", "gru"):
        trained = json.loads(stranger.types(f"train-temporal --core {core} --labels scene --name {core} --json"))
        assert trained["top1"] == 1.0
    compared = stranger.types("compare gmmix gru")
    assert "gmmix" in compared
    assert "gru" in compared

    stranger.types("predict new.mp4 --run gmmix --out answers.csv")
    with (folder / "answers.csv").open(newline="") as file:
        (answer,) = csv.DictReader(file)
    assert answer["class"] == "drawn"

    small = json.loads(stranger.types("cache convert --layers -1 --precision int8 --out small --json"))
    shown = stranger.runs(NOTEBOOK.format(cache=small["cache"]))
    assert shown == "(4, 49, 320) (51, 320) ('drawn', 'filmed') 1.0 TemporalModel\n"

    with capsys.disabled():
        print(f"\n{len(stranger.taken)} commands of {MOST_COMMANDS}, {stranger.seconds:.0f} s of {MOST_SECONDS}")
        for typed, seconds in stranger.taken:
            print(f"  {seconds:5.1f} s  {typed.strip()}")
    assert len(stranger.taken) <= MOST_COMMANDS
    assert stranger.seconds <= MOST_SECONDS

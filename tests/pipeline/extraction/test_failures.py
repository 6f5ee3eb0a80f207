"""Reasons of one kind are one line, whatever videos and numbers they name."""

from pathlib import Path

import pytest

from vfz.pipeline.extraction.extract import extract, group_failures
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.format.ledger import LedgerRow

VIDEOS = Path(__file__).parents[2] / "data/videos"


def _row(id_, reason, *, path=None, status="failed"):
    return LedgerRow(
        id=id_,
        view=0,
        split="train",
        label=None,
        status=status,
        reason=reason,
        attempts=1,
        num_frames=0,
        frame_start=0,
        shard="00000",
        source_digest=None,
        source_path=path or f"/data/{id_}.mp4",
        duration_seconds=0.0,
    )


def _kinds(*rows):
    return [(kind.status, kind.reason, kind.num_videos, kind.example_id) for kind in group_failures(rows)]


def test_names_and_numbers_do_not_tell_reasons_apart():
    assert _kinds(
        _row("a", "a.mp4: is cut short: 12 of 300 frames are there"),
        _row("b", "b.mp4: is cut short: 7.25 of 10.00 s are there"),
        _row("c", "c.mp4: is cut short: 1 of 2 frames are there"),
        _row("d", "no file /data/d.mp4", status="missing"),
        _row("e", "no file /data/e.mp4", status="missing"),
        _row("f", "no file /data/f.mp4", status="missing"),
    ) == [
        ("missing", "no file VIDEO", 3, "d"),
        ("failed", "is cut short: N of N frames are there", 2, "a"),
        ("failed", "is cut short: N of N s are there", 1, "b"),
    ]


@pytest.mark.parametrize(
    ("path", "reason", "kind"),
    [
        ("/data/my clips/it's (1).mp4", "it's (1).mp4: the file is empty", "the file is empty"),
        ("/data/[x]*.mp4", "no file /data/[x]*.mp4", "no file VIDEO"),
        ("/data/clips/a.mp4", "clips/a.mp4 gives 3 frames now, its other layers have 4", "VIDEO gives N frames now, its other layers have N"),  # noqa: E501
        ("/data/t.tar::x/a.mp4", "t.tar::x/a.mp4: the file is empty", "the file is empty"),
        ("/data/layer_5.mp4", "layer_5/patch: frame 3 of 8 holds NaN", "layer_5/patch: frame N of N holds NaN"),
        ("/data/a.mp4", "layer_11/patch: failed: a.mp4: decoder died (signal 11)", "layer_11/patch: failed: VIDEO: decoder died (signal N)"),  # noqa: E501
    ],
)  # fmt: skip
def test_odd_names_are_recognised(path, reason, kind):
    assert [found.reason for found in group_failures([_row("x", reason, path=path)])] == [kind]


def test_good_videos_are_of_no_kind():
    assert _kinds(_row("a", "", status="pending")) == []


def test_a_report_counts_each_kind_over_the_whole_cache(folder_dataset, tmp_path):
    bikes = (VIDEOS / "bikes.mp4").read_bytes()
    for number in range(3):
        (folder_dataset / f"train/traffic/text{number}.mp4").write_text("not a video " * number)
        (folder_dataset / f"train/traffic/cut{number}.mp4").write_bytes(bikes[: len(bikes) // (2 + number)])
    options = ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="demo", layers=("3",), image_size=64, fps=1, out=tmp_path
    )
    for _ in range(2):  # the second call does nothing and still tells
        report = extract(options)
        found = {kind.reason: (kind.num_videos, kind.example_id) for kind in report.failure_kinds}
        assert found["the file is empty"] == (1, "train/traffic/text0")
        assert sum(count for count, _ in found.values()) == report.num_failed == len(report.failures) == 6
        assert len(found) <= 4, "of one kind are the texts, of another the videos that were cut"

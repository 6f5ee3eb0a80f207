"""Extraction from outside: what is done again, what is refused, what is told, and that nothing finished is lost."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.extraction import Notes, all_tokens
from helpers.video_files import VIDEOS

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheIncompleteError, CacheMismatchError, DatasetError, TooManyFailuresError, UsageError
from vfz.pipeline.extraction.extract import extract, group_failures
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.format.ledger import LedgerRow
from vfz.pipeline.progress import SilentProgress


@pytest.fixture
def folder(folder_dataset, tmp_path):
    """Options for the sample videos, small and quick."""
    return ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="demo", layers=("3",), image_size=64, fps=2, end_seconds=4.0,
        batch_size=8, out=tmp_path / "caches",
    )  # fmt: skip


def test_a_second_call_does_no_work_and_says_so(folder):
    first = extract(folder)
    before = {path: path.stat().st_mtime_ns for path in sorted((folder.out).rglob("*"))}
    second = extract(folder)
    assert (second.cache, second.new_videos, second.new_frames) == (first.cache, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.out.rglob("*"))} == before


@pytest.mark.quick
def test_the_report_counts_what_is_in_the_cache(folder):
    report = extract(folder)
    cache = FeatureCache(report.cache)
    assert report.num_frames == sum(row.num_frames for row in cache.ok_videos()) == report.new_frames
    assert report.fingerprint == cache.fingerprint
    assert report.cache.endswith(f"-tf_efficientnet_lite0-{report.fingerprint[:12]}")


def test_new_videos_extend_the_cache_and_leave_the_old_shards_alone(folder, folder_dataset):
    extract(folder)
    before = all_tokens(next(folder.out.iterdir()))
    source = folder_dataset / "train/traffic/bikes.mp4"
    shutil.copy(source, source.with_name("more.mp4"))
    report = extract(folder)
    assert (report.num_ok, report.new_videos) == (5, 1)
    after = all_tokens(report.cache)
    assert {video: after[video] for video in before} == before
    assert after["train/traffic/more"] == after["train/traffic/bikes"]


def test_weights_with_an_average_say_so_and_are_never_mixed_with_the_plain_ones(folder, tmp_path):
    torch.manual_seed(5)
    plain, averaged = (timm.create_model("test_vit", num_classes=3).state_dict() for _ in range(2))
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "both.pth")
    vit = dataclasses.replace(folder, encoder="test_vit", layers=("5",), weights=tmp_path / "both.pth")
    notes = Notes()
    average = extract(vit, progress=notes).cache
    told = "weights both.pth: took state_dict_ema, a moving average (as timm does), not state_dict"
    assert [line.startswith(told) for line in notes.lines] == [True]
    assert FeatureCache(average).provenance["weights_taken"].startswith(told)
    other = dataclasses.replace(vit, weights_key="state_dict")
    with pytest.raises(CacheMismatchError, match=r"encoder\.weights_sha256"):
        extract(dataclasses.replace(other, cache=Path(average)))
    assert extract(other).cache != average
    assert extract(vit).new_videos == 0


def test_the_same_id_with_another_file_is_refused(folder, folder_dataset):
    extract(folder)
    shutil.copy(folder_dataset / "train/cartoon/bigbuckbunny.mp4", folder_dataset / "train/traffic/bikes.mp4")
    with pytest.raises(CacheMismatchError, match="train/traffic/bikes"):
        extract(folder)


def test_a_failed_video_is_tried_again_when_its_file_was_mended(folder, folder_dataset):
    broken = folder_dataset / "train/traffic/broken.mp4"
    broken.write_bytes((folder_dataset / "train/traffic/bikes.mp4").read_bytes()[:100_000])
    assert extract(folder).num_failed == 1
    assert extract(folder).new_videos == 0, "a file that is as broken as before is left alone"
    shutil.copy(folder_dataset / "train/traffic/bikes.mp4", broken)
    report = extract(folder)
    assert (report.num_ok, report.num_failed, report.new_videos) == (5, 0, 1)
    row = next(row for row in FeatureCache(report.cache).videos if row.id == "train/traffic/broken")
    assert row.attempts == 2


def test_retry_failed_tries_again_and_records_the_attempt(folder, folder_dataset):
    (folder_dataset / "train/traffic/broken.mp4").write_text("not a video")
    extract(folder)
    report = extract(dataclasses.replace(folder, retry_failed=True))
    row = next(row for row in FeatureCache(report.cache).videos if row.status == "failed")
    assert (row.id, row.attempts) == ("train/traffic/broken", 2)


def test_a_video_that_fails_half_way_leaves_nothing_in_its_shard(folder, folder_dataset):
    """Cut after its index of frames: the first half decodes, is encoded, and must not stay."""
    folder = dataclasses.replace(folder, end_seconds=None)
    good = all_tokens(extract(folder).cache)
    faststart = folder_dataset / "train/traffic/cut.mp4"
    faststart.write_bytes(_with_index_in_front(folder_dataset / "train/traffic/bikes.mp4")[:350_000])
    report = extract(dataclasses.replace(folder, name="with-a-cut-one"))
    assert list(report.failures) == ["train/traffic/cut"]
    assert all_tokens(report.cache) == good


def _with_index_in_front(path):
    import av

    target = path.with_name("faststart.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = target.read_bytes()
    target.unlink()
    return data


def test_another_recipe_is_refused_field_by_field(folder):
    cache = extract(folder).cache
    with pytest.raises(CacheMismatchError, match=r"encoder\.image_size: cache 64, requested 96"):
        extract(dataclasses.replace(folder, cache=cache, image_size=96))
    with pytest.raises(CacheMismatchError, match=r"frames\.fps: cache 2.0, requested 3.0"):
        extract(dataclasses.replace(folder, cache=cache, fps=3))
    assert extract(dataclasses.replace(folder, cache=Path(Path(cache).name))).cache == cache
    with pytest.raises(UsageError, match="did you mean"):
        extract(dataclasses.replace(folder, cache=Path(f"x{Path(cache).name}")))


def test_a_split_can_be_added_later(folder):
    first = extract(dataclasses.replace(folder, splits=("train",)))
    assert first.num_ok == 2
    second = extract(folder)
    assert (second.cache, second.num_ok, second.new_videos) == (first.cache, 4, 2)
    with pytest.raises(UsageError, match="it has test, train"):
        extract(dataclasses.replace(folder, splits=("valid",)))


def test_two_datasets_of_one_name_are_not_mixed(folder, folder_dataset, tmp_path):
    extract(folder)
    other = tmp_path / "elsewhere" / folder_dataset.name
    for path in folder_dataset.rglob("*.mp4"):
        target = other / path.relative_to(folder_dataset).with_name(f"other-{path.name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    with pytest.raises(CacheMismatchError, match="another dataset of the same name"):
        extract(dataclasses.replace(folder, root=other))


def test_a_dataset_that_was_moved_as_a_whole_is_the_same_dataset(folder, folder_dataset, tmp_path):
    first = extract(folder)
    moved = tmp_path / "elsewhere" / folder_dataset.name
    moved.parent.mkdir()
    folder_dataset.rename(moved)
    again = extract(dataclasses.replace(folder, root=moved))
    assert (again.cache, again.num_tried) == (first.cache, 0)


def test_videos_that_are_gone_are_told_of_and_kept(folder, folder_dataset):
    notes = []

    class Listening(SilentProgress):
        def note(self, text):
            notes.append(text)

    extract(folder)
    (folder_dataset / "train/traffic/bikes.mp4").unlink()
    assert extract(folder, progress=Listening()).num_ok == 4
    assert "1 videos of the cache are no longer" in notes[0]
    assert "train/traffic/bikes" in notes[0]


def test_failures_of_earlier_calls_count(folder, folder_dataset):
    for number in range(3):
        (folder_dataset / f"train/traffic/broken{number}.mp4").write_text("not a video")
    strict = dataclasses.replace(folder, max_failures=2)
    with pytest.raises(TooManyFailuresError):
        extract(strict)
    with pytest.raises(TooManyFailuresError, match="3 videos failed, 2 are allowed"):
        extract(strict)  # nothing is left to do, and that is no success
    shutil.copy(folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "train/traffic/new.mp4")
    with pytest.raises(TooManyFailuresError):
        extract(strict)
    assert extract(dataclasses.replace(folder, max_failures=3)).num_ok == 5


def test_nothing_is_rendered_or_written_for_an_encoder_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="did you mean vit_tiny_patch16_224"):
        extract(
            ExtractOptions(dataset="synthetic", root=tmp_path / "videos", encoder="vit_tiny_patch16_24", out=tmp_path)
        )
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_marked(folder):
    report = extract(dataclasses.replace(folder, encoder="vit_tiny_patch16_224", layers=("11",), random_weights=True))
    assert FeatureCache(report.cache).recipe["encoder"]["random_weights"] is True


def test_weights_of_another_seed_make_another_cache(folder):
    vit = dataclasses.replace(folder, encoder="vit_tiny_patch16_224", layers=("11",), random_weights=True, fps=0.2)
    assert extract(vit).fingerprint != extract(dataclasses.replace(vit, seed=1)).fingerprint


@pytest.mark.parametrize(("make", "words"), [(False, "does not exist"), (True, "no video")])
def test_a_root_that_is_missing_or_empty_is_refused_and_nothing_is_written(tmp_path, make, words):
    if make:
        (tmp_path / "root").mkdir()
    with pytest.raises(DatasetError, match=words):
        extract(ExtractOptions(dataset="folder", root=tmp_path / "root", encoder="demo", out=tmp_path / "caches"))
    assert not (tmp_path / "caches").exists()


def test_too_many_failures_end_the_run_and_keep_what_was_finished(folder, folder_dataset):
    for number in range(3):
        (folder_dataset / f"train/traffic/broken{number}.mp4").write_text("not a video")
    with pytest.raises(TooManyFailuresError, match="3 videos failed, 1 are allowed"):
        extract(dataclasses.replace(folder, max_failures=1))
    (path,) = folder.out.iterdir()
    cache = FeatureCache(path, allow_incomplete=True)
    assert sum(row.status == "failed" for row in cache.videos) == 3
    assert all_tokens(path)


def test_a_cache_that_is_not_complete_is_refused_by_readers(synthetic_options, synthetic_cache, tmp_path):
    shutil.copytree(synthetic_cache.path, tmp_path / "cache")
    next((tmp_path / "cache" / "shards").glob("*.index.json")).unlink()
    with pytest.raises(CacheIncompleteError, match=r"16 of 48 videos are pending.*vfz extract"):
        FeatureCache(tmp_path / "cache")


def test_golden_frames_are_kept_with_the_tokens_they_gave(folder):
    import torch

    from vfz.pipeline.encoder.model import load_encoder
    from vfz.pipeline.format.golden import read_golden

    cache = FeatureCache(extract(dataclasses.replace(folder, precision="fp32")).cache)
    golden = read_golden(cache.path, cache.contents)
    assert golden.pixels_GCHW.shape == (16, 3, 64, 64)
    assert len(set(golden.video_ids)) > 1
    encoder = load_encoder("demo", layers=("3",), image_size=64, batch_size=8)
    tokens = encoder.encode(torch.from_numpy(golden.pixels_GCHW))["3"].patch_BND
    assert np.array_equal(tokens.numpy(), golden.arrays["layer_3/patch"])


# --- failures: reasons of one kind are one line, whatever videos and numbers they name ---


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

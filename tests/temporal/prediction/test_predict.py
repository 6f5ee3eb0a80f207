"""`vfz predict`: what a run or a probe says of videos, cached or new, and what it says where it cannot."""

import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.training import small_options
from safetensors.torch import save_file

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.encoder.weights import state_digest
from vfz.pipeline.errors import CacheMismatchError, EncoderError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.files import name_of_text
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.temporal.data.loader import ClipLoader
from vfz.temporal.data.sampling import ClipRule
from vfz.temporal.data.targets import FrameTargets
from vfz.temporal.data.tokens import CachedTokens, ClipRequest
from vfz.temporal.kept import evaluations_of, read_evaluation
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.prediction.predict import predict
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.run import probe, probe_all
from vfz.temporal.training.evaluate import evaluate
from vfz.temporal.training.options import EvaluateOptions
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.train import train_temporal


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(synthetic_cache, out):
    return Path(train_temporal(small_options(synthetic_cache, out, epochs=2)).run)


@pytest.fixture(scope="module")
def vit_run(vit_cache, out):
    return Path(train_temporal(small_options(vit_cache, out, epochs=1, name="vit")).run)


def files_of(cache, split, count):
    """Ids and files of some of a cache's videos."""
    rows = cache.ok_videos(split)[:count]
    return [row.id for row in rows], [Path(name_of_text(row.source_path)) for row in rows]


def probabilities_by_hand(run, cache, ids, *, clip_frames=6):
    """What the model says of the centred clip of each, without anything of `vfz predict`."""
    model, info = load_model(run)
    config = model.config
    tokens = CachedTokens(cache, layers=config.encoder_layers, parts=config.parts)
    rule, found = ClipRule(num_frames=clip_frames), []
    for row in (row for row in cache.videos if row.id in ids and row.view == 0):
        frames = rule.choose(row.num_frames)
        read = tokens.read_clips([ClipRequest(video=row, frames=frames.numbers, mask=frames.mask)], torch.device("cpu"))
        with torch.no_grad():
            found.append(model(read.layers_BTND)[0, -1].softmax(dim=0).tolist())
    assert info.values["class_names"] == list(cache.class_names)
    return np.array(found)


@pytest.mark.parametrize("of", ["run", "vit_run"])
def test_files_of_cached_videos_are_answered_for_as_the_cached_tokens_are(request, synthetic_cache, vit_cache, of):
    cache = {"run": synthetic_cache, "vit_run": vit_cache}[of]
    path = request.getfixturevalue(of)
    ids, files = files_of(cache, "test", 5)
    report = predict(PredictOptions(run=path, videos=files, device="cpu"))
    assert (report.num_videos, report.num_failed, report.task) == (5, 0, "classify")
    assert [one.video for one in report.predictions] == list(map(str, files))
    new = np.array([list(one.scores.values()) for one in report.predictions])
    np.testing.assert_allclose(new, probabilities_by_hand(path, cache, ids), atol=1e-5)
    cached = predict(PredictOptions(run=path, cache=cache.path, split="test", device="cpu"))
    assert cached.num_videos == 12
    by_id = {one.video: list(one.scores.values()) for one in cached.predictions}
    np.testing.assert_allclose(new, [by_id[one] for one in ids], atol=1e-5)
    assert report.predictions[0].likeliest()[0][1] == pytest.approx(new[0].max())


def test_an_evaluation_that_was_kept_and_a_prediction_are_the_same(synthetic_cache, run):
    options = EvaluateOptions(run=run, cache=synthetic_cache.path, segments=2, device="cpu")
    evaluate(options)
    kept = next(one for one in map(read_evaluation, evaluations_of(run)) if one.identity["segments"] == 2)
    files = [name_of_text(row.source_path) for row in synthetic_cache.ok_videos("test")]
    new = predict(PredictOptions(run=run, videos=tuple(map(Path, files)), segments=2, device="cpu")).predictions
    assert list(kept.videos.ids) == [row.id for row in synthetic_cache.ok_videos("test")]
    np.testing.assert_allclose(
        [list(one.scores.values()) for one in new], kept.videos.values["probabilities"], atol=1e-5
    )


@pytest.mark.parametrize("changes", [{}, {"probe": "attentive"}, {"probe": "knn", "pool": "frame"}, {"temporal": True}])
def test_a_probe_says_of_files_what_it_said_of_the_evaluated_split(synthetic_cache, run, out, changes):
    changes = changes | ({"temporal": run} if "temporal" in changes else {})
    asked = ProbeOptions(
        cache=synthetic_cache.path, clip_frames=6, out=out, epochs=1, lrs=(1e-3,), weight_decays=(0.1,),
        neighbours=(5,), device="cpu",
    )  # fmt: skip
    result = probe(dataclasses.replace(asked, **changes)).result
    record = json.loads((Path(result) / "probe.json").read_text())
    names, (fit,) = record["class_names"], record["runs"]
    cached = predict(PredictOptions(probe=result, cache=synthetic_cache.path, split="test", device="cpu"))
    assert [one.video for one in cached.predictions] == record["videos"]["ids"]
    assert [one.likeliest()[0][0] for one in cached.predictions] == [names[label] for label in fit["predicted"]]
    np.testing.assert_allclose([one.likeliest()[0][1] for one in cached.predictions], fit["confidence"], atol=1e-5)
    ids, files = files_of(synthetic_cache, "test", 3)
    new = predict(PredictOptions(probe=result, videos=files, device="cpu")).predictions
    assert ids == record["videos"]["ids"][:3]
    np.testing.assert_allclose([one.likeliest()[0][1] for one in new], fit["confidence"][:3], atol=1e-5)


@pytest.mark.parametrize("labels", ["sides", "places"])
def test_label_sets_are_answered_by_name(labelled_cache, out, labels):
    names = FeatureCache(labelled_cache.path, labels=labels).label_set.names
    asked = small_options(labelled_cache, out, labels=labels, epochs=1, name=f"of-{labels}")
    run = train_temporal(asked).run
    evaluate(EvaluateOptions(run=run, cache=labelled_cache.path, device="cpu"))
    (kept,) = map(read_evaluation, evaluations_of(Path(run)))
    ids, files = files_of(labelled_cache, "test", 3)
    report = predict(PredictOptions(run=run, videos=files, device="cpu"))
    assert report.names == tuple(report.predictions[0].scores) == names
    answers = kept.videos.values["answers"]
    places = [kept.videos.ids.index(one) for one in ids]
    new = np.array([list(one.scores.values()) for one in report.predictions])
    np.testing.assert_allclose(new, answers[places], rtol=1e-5, atol=1e-5)
    asked = ProbeOptions(cache=labelled_cache.path, labels=labels, clip_frames=6, out=out, device="cpu")
    result = Path(probe_all(asked)[0].result)
    record = json.loads((result / "probe.json").read_text())
    of_probe = predict(PredictOptions(probe=result, videos=files, device="cpu")).predictions
    places = [record["videos"]["ids"].index(one) for one in ids]
    np.testing.assert_allclose(
        [list(one.scores.values()) for one in of_probe], np.array(record["runs"][0]["answers"])[places],
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_poses_are_numbers_of_every_frame_but_the_first(synthetic_cache, out):
    options = small_options(synthetic_cache, out, task="pose", epochs=1, name="pose", readout_heads=None)
    run = train_temporal(options).run
    _, files = files_of(synthetic_cache, "test", 1)
    (prediction,) = predict(PredictOptions(run=run, videos=files, device="cpu")).predictions
    times = [frame.pts_seconds for frame in prediction.frames]
    assert times == sorted(times)
    assert len(times) == 5
    turned = np.array([frame.numbers[3:] for frame in prediction.frames]).reshape(-1, 3, 3)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turned.shape), atol=1e-5)
    cached = predict(PredictOptions(run=run, cache=synthetic_cache.path, split="test", device="cpu")).predictions[0]
    np.testing.assert_allclose(
        [frame.numbers for frame in prediction.frames], [frame.numbers for frame in cached.frames], atol=1e-5
    )


@pytest.mark.parametrize("task", ["boxes", "points"])
def test_what_starts_from_a_truth_is_answered_for_a_cache_and_refused_for_new_videos(synthetic_cache, out, task):
    run = train_temporal(small_options(synthetic_cache, out, task=task, epochs=1, name=task, readout_hidden=8)).run
    report = predict(PredictOptions(run=run, cache=synthetic_cache.path, split="test", device="cpu"))
    assert (report.num_videos, report.num_failed) == (12, 0)
    model, _ = load_model(run)
    targets = FrameTargets(synthetic_cache, task=task)
    tokens = CachedTokens(synthetic_cache, layers=("3",), parts="all")
    rows = synthetic_cache.ok_videos("test")
    loader = ClipLoader(tokens, rows, rule=ClipRule(num_frames=6), batch_size=16, device=torch.device("cpu"),
                        targets=targets)  # fmt: skip
    batch = next(loader.in_order())
    with torch.no_grad():
        if task == "boxes":
            expected = model(batch.layers_BTND, init_box_cxcywh=batch.targets["init_box_cxcywh"])[0]
        else:
            asked = {name: batch.targets[name] for name in ("query_xy", "query_frame")}
            expected = model(batch.layers_BTND, **asked)["xy"][0]
    frames = report.predictions[0].frames
    assert len(frames) == expected[..., 0].numel()
    for frame in frames:
        place = round(float((batch.pts_seconds_BT[0] - frame.pts_seconds).abs().argmin()))
        there = expected[frame.thing, place].tolist()
        assert frame.numbers[: len(there)] == pytest.approx(there, abs=1e-5)
    _, files = files_of(synthetic_cache, "test", 1)
    with pytest.raises(UsageError, match=f"is of task {task} and must be told .*--cache") as caught:
        predict(PredictOptions(run=run, videos=files))
    assert "\n" not in str(caught.value)


def test_maps_of_depth_are_refused_in_a_line(synthetic_cache, out):
    run = train_temporal(small_options(synthetic_cache, out, task="depth", epochs=1, name="depth")).run
    with pytest.raises(UsageError, match="task depth, whose answers are no rows of a table; ask its model in Python"):
        predict(PredictOptions(run=run, cache=synthetic_cache.path))


def test_videos_without_tokens_are_told_as_the_cache_knows_them(synthetic_options, run, tmp_path):
    options = synthetic_options(out=tmp_path)
    broken = next((options.root / "test").glob("*/*.mp4"))
    content = broken.read_bytes()
    broken.write_bytes(b"no video")
    try:
        cache = extract(options).cache
    finally:
        broken.write_bytes(content)
    report = predict(PredictOptions(run=run, cache=cache, device="cpu"))
    assert (report.num_videos, report.num_failed) == (48, 1)
    (failed,) = (one for one in report.predictions if one.error)
    assert failed.error.startswith("failed in the cache: ")


def test_clips_are_spread_and_views_averaged_as_those_of_a_cache(synthetic_options, out, tmp_path):
    cache = FeatureCache(extract(synthetic_options(out=tmp_path, views=2, num_videos=24, root=tmp_path / "24")).cache)
    run = train_temporal(small_options(cache, out, epochs=1, name="views", clip_frames=3)).run
    ids, files = files_of(cache, "test", 3)
    several = {"segments": 3, "views": (0,), "device": "cpu"}
    cached = predict(PredictOptions(run=run, cache=cache.path, split="test", **several))
    new = predict(PredictOptions(run=run, videos=files, **several))
    by_id = {one.video: list(one.scores.values()) for one in cached.predictions}
    np.testing.assert_allclose(
        [list(one.scores.values()) for one in new.predictions], [by_id[one] for one in ids], atol=1e-5
    )
    both = predict(PredictOptions(run=run, videos=files, views=(0, 1), device="cpu"))
    assert both.predictions[0].scores != new.predictions[0].scores
    with pytest.raises(UsageError, match="view 5 is not in"):
        predict(PredictOptions(run=run, cache=cache.path, views=(5,)))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_tokens_are_rounded_as_the_cache_rounds_them(synthetic_cache, synthetic_options, out, tmp_path, precision):
    if precision == "int8":  # out of fp16, and so rounded twice
        asked = ConvertOptions(cache=synthetic_cache.path, precision=precision, out=tmp_path)
        cache = FeatureCache(convert(asked).cache)
    else:
        asked = synthetic_options(out=tmp_path, precision=precision, num_videos=24, root=tmp_path / "24")
        cache = FeatureCache(extract(asked).cache)
    run = train_temporal(small_options(cache, out, epochs=1, name=precision)).run
    ids, files = files_of(cache, "test", 4)
    new = predict(PredictOptions(run=run, videos=files, device="cpu")).predictions
    by_hand = probabilities_by_hand(run, cache, ids)
    np.testing.assert_allclose([list(one.scores.values()) for one in new], by_hand, atol=1e-4)
    moved = shutil.move(cache.path, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"{precision} tokens, and the calibration of layer_3/patch.*--cache"):
        predict(PredictOptions(run=run, videos=files))
    again = predict(PredictOptions(run=run, videos=files, cache=moved, device="cpu")).predictions
    assert [one.scores for one in again] == [one.scores for one in new]


def test_a_long_video_is_decoded_twice_and_answered_for_alike(synthetic_cache, run, monkeypatch):
    _, files = files_of(synthetic_cache, "test", 2)
    once = predict(PredictOptions(run=run, videos=files, device="cpu")).predictions
    monkeypatch.setattr("vfz.pipeline.extraction.new_videos.HELD_BYTES", 1)
    twice = predict(PredictOptions(run=run, videos=files, device="cpu")).predictions
    assert [one.scores for one in once] == [one.scores for one in twice]


def vfz(*arguments, cwd=None):
    """`vfz` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "vfz.cli", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def rows_of(path):
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(synthetic_cache, tmp_path):
    """Two videos, one of them with a comma, quotes, a newline and a control character in its name, and a text."""
    _, files = files_of(synthetic_cache, "test", 2)
    (tmp_path / "videos/deep").mkdir(parents=True)
    shutil.copy(files[0], tmp_path / "videos/a.mp4")
    shutil.copy(files[1], tmp_path / 'videos/deep/=odd, "name"\n\x1b[31m.mp4')
    (tmp_path / "videos/broken.mp4").write_bytes(b"no video")
    (tmp_path / "videos/.hidden.mp4").write_bytes(b"no video")
    (tmp_path / "videos/notes.txt").write_text("no video")
    return tmp_path / "videos"


def test_the_command_writes_a_row_for_each_video_and_ends_with_3_where_one_failed(folder, run, synthetic_cache):
    done = vfz("predict", folder, "--run", run, "--top-k", 2, "--device", "cpu")
    assert done.returncode == 3
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [Path(row["video"]).name for row in rows] == ["a.mp4", "broken.mp4", '=odd, "name"\n\x1b[31m.mp4']
    assert list(rows[0]) == ["video", "class", "probability", "class_2", "probability_2", "error"]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert rows[1]["class"] == ""
    assert rows[0]["class"] in synthetic_cache.class_names
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])
    assert "1 of 3 videos have no answer" in done.stderr.splitlines()[-1]


def test_rows_go_to_csv_and_jsonl_files_and_to_json_on_stdout(folder, run, tmp_path, capsys):
    arguments = ["predict", str(folder), "--run", str(run), "--probabilities", "--device", "cpu"]
    for name in ("rows.csv", "rows.jsonl"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 3
        assert "2 of 3 videos" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().split("\n") if line]
    table = rows_of(tmp_path / "rows.csv")
    assert [line["video"] for line in lines] == [row["video"] for row in table]
    for line, row in zip(lines, table, strict=True):
        assert (line["error"] or "") == row["error"]
        if line["error"] is None:
            assert {f"p({name})": value for name, value in line["probabilities"].items()} == {
                name: float(value) for name, value in row.items() if name.startswith("p(")
            }
            assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-6)
            assert line["probability"] == max(line["probabilities"].values()) == float(row["probability"])
    assert main([*arguments, "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["videos"] == lines
    assert (printed["num_videos"], printed["num_failed"], printed["task"]) == (3, 1, "classify")
    assert main([*arguments, "--out", str(tmp_path / "rows.csv")]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "rows.csv"), "--force"]) == 3


def test_control_characters_of_a_name_are_escaped_on_a_terminal(folder, run, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["predict", str(folder / "deep"), "--run", str(run), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].startswith('"') and r"\n\x1b[31m.mp4" in out.splitlines()[1]  # noqa: PT018
    assert "\x1b" not in out


def test_what_was_answered_stays_when_it_is_interrupted(folder, run, tmp_path):
    for number in range(400):
        os.link(folder / "a.mp4", folder / f"b{number:03}.mp4")
    rows = tmp_path / "rows.csv"
    process = subprocess.Popen(
        [sys.executable, "-m", "vfz.cli", "predict", folder, "--run", run, "--out", rows, "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not (rows.exists() and rows.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    found = rows_of(rows)
    said = f"vfz: error: interrupted; the rows of {len(found)} videos are in {rows}; --force begins it anew"
    assert err.decode().splitlines()[-1] == said
    assert 2 < len(found) < 402
    assert all(row["probability"] or row["error"] for row in found)


def test_a_name_that_is_no_utf8_is_escaped_and_nothing_breaks(folder, run, tmp_path, capsys):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/n\xff.mp4")
    (folder / "a.mp4").rename(odd)
    rows = tmp_path / "rows.jsonl"
    for more in ([], ["--json"], ["--out", str(rows)]):
        assert main(["predict", odd, "--run", str(run), "--device", "cpu", *more]) == 0
        shown = capsys.readouterr().out
        assert more == ["--out", str(rows)] or r"n\udcff.mp4" in shown
    assert os.fsencode(json.loads(rows.read_text())["video"]) == os.fsencode(odd)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "--run and --probe say what is asked, and neither was given"),
        ({"probe": "x"}, "--run and --probe contradict each other"),
        ({"videos": None}, "no videos; name files or folders"),
        ({"split": "test"}, "--split test is of a --cache"),
        ({"targets": "t.npz"}, "--targets t.npz is of a --cache"),
        ({"out": "rows.txt"}, r"rows.txt ends neither in \.csv nor in \.jsonl"),
        ({"views": (0, 0)}, "names one twice"),
        ({"videos": "nowhere.mp4"}, "no file or folder nowhere.mp4"),
        ({"run": "grru"}, "grru is not a folder, and runs/ holds no run"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(run, folder, tmp_path, monkeypatch, changes, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        predict(PredictOptions(**{"run": run, "videos": folder} | changes))
    assert "\n" not in str(caught.value)


def test_other_weights_than_the_encoders_are_refused(synthetic_cache, vit_cache, vit_run, run, tmp_path):
    _, files = files_of(vit_cache, "test", 1)
    other = Path(shutil.copytree(vit_run, tmp_path / "other"))
    record = json.loads((other / "run.json").read_text())
    record["cache"]["encoder_request"]["seed"] = 7
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(CacheMismatchError, match=r"weights of vit_tiny_patch16_224 .* give the right --weights"):
        predict(PredictOptions(run=other, videos=files))
    with pytest.raises(CacheMismatchError, match=r"another recipe.*encoder\.name"):
        predict(PredictOptions(run=run, cache=vit_cache.path))


def test_weights_that_were_moved_are_named_and_those_of_the_recipe_are_taken(vit_run, vit_cache, tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    moved = Path(shutil.copytree(vit_run, tmp_path / "run"))
    record = json.loads((moved / "run.json").read_text())
    spec, request = record["cache"]["recipe"]["encoder"], record["cache"]["encoder_request"]
    spec |= {"random_weights": False, "weights_sha256": state_digest(model)}
    request |= {"random_weights": False, "weights": str(tmp_path / "gone.safetensors")}
    (moved / "run.json").write_text(json.dumps(record))
    _, files = files_of(vit_cache, "test", 1)
    with pytest.raises(EncoderError, match=r"run was made with the weights .*gone.safetensors, which are not there"):
        predict(PredictOptions(run=moved, videos=files))
    report = predict(PredictOptions(run=moved, videos=files, weights=tmp_path / "w.safetensors", device="cpu"))
    assert report.num_failed == 0


def test_a_run_is_no_probe_and_a_probe_no_run(synthetic_cache, run, out, monkeypatch, tmp_path):
    asked = ProbeOptions(cache=synthetic_cache.path, clip_frames=6, out=out, device="cpu")
    result = probe(dataclasses.replace(asked, probe="knn", name="of-tokens", neighbours=(5,))).result
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(out)
    for options, words in (
        ({"run": "of-tokens"}, "runs/of-tokens is a probe result, made by vfz probe, and no run"),
        ({"probe": "run"}, "runs/run is a run, made by vfz train-temporal, and no probe result"),
        ({"run": result}, "is a probe result"),
    ):
        with pytest.raises(UsageError, match=words):
            predict(PredictOptions(cache=synthetic_cache.path, **options))


def test_a_run_of_before_finds_how_its_encoder_was_built_in_its_cache(synthetic_cache, run, tmp_path):
    older = Path(shutil.copytree(run, tmp_path / "older"))
    record = json.loads((older / "run.json").read_text())
    del record["cache"]["encoder_request"]
    (older / "run.json").write_text(json.dumps(record))
    _, files = files_of(synthetic_cache, "test", 1)
    one, other = (predict(PredictOptions(run=path, videos=files, device="cpu")).predictions for path in (run, older))
    assert one[0].scores == other[0].scores

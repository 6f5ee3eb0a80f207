"""`vfz probe` on caches: what is reported, kept, reused, swept and refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import CacheFormatError, CacheMismatchError, RunError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.temporal.probes import PROBES, fit_knn, fit_linear
from vfz.temporal.probes.options import ProbeOptions
from vfz.temporal.probes.record import compare_records, read_record
from vfz.temporal.probes.run import probe, probe_all
from vfz.temporal.training.options import TrainOptions
from vfz.temporal.training.runs import load_model
from vfz.temporal.training.train import train_temporal


@pytest.fixture
def options(synthetic_cache, tmp_path):
    return ProbeOptions(
        cache=synthetic_cache.path, clip_frames=6, out=tmp_path / "runs", epochs=2, neighbours=(5, 10), device="cpu"
    )


@pytest.fixture
def reads(monkeypatch):
    """(layers, number of clips) of every read from a cache."""
    seen = []
    plain = FeatureCache.read_batch

    def counted(self, clips, layers=None, parts=None, *, out=None):
        seen.append((tuple(layers), len(clips)))
        return plain(self, clips, layers, parts, out=out)

    monkeypatch.setattr(FeatureCache, "read_batch", counted)
    return seen


@pytest.mark.parametrize("name", PROBES.names())
def test_a_probe_of_a_cache_is_reported_with_its_denominator_and_kept(options, synthetic_cache, name):
    report = probe(dataclasses.replace(options, probe=name))
    assert (report.num_eval_clips, report.num_eval_missing, report.num_eval_planned) == (12, 0, 12)
    assert report.eval_split == "test"
    assert report.chance == pytest.approx(1 / 6)
    assert report.low <= report.top1 <= report.high
    assert report.top1 <= min(report.best_head_on_validation, report.top5)
    record = read_record(Path(report.result))
    assert record["report"]["top1"] == report.top1
    assert record["digests"]["cache"] == synthetic_cache.fingerprint
    assert record["digests"]["ledger"] == synthetic_cache.ledger_digest
    assert record["class_names"] == list(synthetic_cache.class_names)


def test_the_record_has_what_figures_are_made_of(options, synthetic_cache):
    report = probe(dataclasses.replace(options, probe="attentive", lrs=(1e-3, 1e-2), weight_decays=(0.1,)))
    record = read_record(Path(report.result))
    rows = {row.id: row.label for row in synthetic_cache.ok_videos("test")}
    assert dict(zip(record["videos"]["ids"], record["videos"]["labels"], strict=True)) == rows
    (run,) = record["runs"]
    right = [one == label for one, label in zip(run["predicted"], record["videos"]["labels"], strict=True)]
    assert run["top1"] == report.top1 == np.mean(right)
    assert [rank == 0 for rank in run["label_rank"]] == right
    assert run["top5"] == np.mean([rank < 5 for rank in run["label_rank"]])
    assert [(head["lr"], head["weight_decay"]) for head in run["heads"]] == [(1e-3, 0.1), (1e-2, 0.1)]
    best = run["heads"][run["best_head"]]["eval_top1"]
    assert best == report.best_head_on_validation == max(head["eval_top1"] for head in run["heads"])
    assert {len(curve) for curve in run["curves"].values()} == {2}
    assert run["chosen"] == report.chosen
    assert record["features"]["clips"] == {
        "num_frames": 6, "stride": 1, "step_seconds": None, "segments": 1, "views": 1,
    }  # fmt: skip


def test_the_reported_split_chooses_nothing(options):
    one, other = (probe(dataclasses.replace(options, eval_split=split)) for split in ("test", "train"))
    assert one.chosen == other.chosen
    assert one.num_eval_clips != other.num_eval_clips


def test_asked_again_the_stored_result_is_returned_unless_forced(options, reads):
    first = probe(options)
    assert reads
    reads.clear()
    assert probe(options) == dataclasses.replace(first, reused=True)
    assert not reads
    assert probe(dataclasses.replace(options, force=True)).reused is False
    assert reads


def test_other_settings_never_replace_a_result(options):
    first = probe(options)
    assert probe(dataclasses.replace(options, pool="last")).result != first.result
    probe(dataclasses.replace(options, name="mine"))
    with pytest.raises(RunError, match=r"pool \(there mean, now last\).*--force"):
        probe(dataclasses.replace(options, name="mine", pool="last"))
    assert probe(dataclasses.replace(options, name="mine", pool="last", force=True)).pool == "last"


def test_a_cache_that_has_grown_is_probed_anew(synthetic_options, tmp_path):
    def make(num_videos):
        return extract(synthetic_options(num_videos=num_videos, root=tmp_path / str(num_videos), out=tmp_path)).cache

    options = ProbeOptions(cache=make(24), clip_frames=6, out=tmp_path / "runs")
    first = probe(options)
    other = probe(dataclasses.replace(options, cache=make(48)))
    assert not other.reused
    assert other.result != first.result


def test_a_result_that_is_damaged_is_told(options):
    report = probe(options)
    path = Path(report.result) / "probe.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(RunError, match=r"damaged.*--force"):
        probe(options)
    assert probe(dataclasses.replace(options, force=True)).top1 == report.top1


def test_a_sweep_reads_every_layer_once(vit_cache, tmp_path, reads):
    options = ProbeOptions(
        cache=vit_cache.path, clip_frames=6, out=tmp_path, sweep=True, shots=("50%", "100%"), seeds=2
    )
    reports = probe_all(options)
    assert [(report.layers, report.shots) for report in reports] == [
        (("5",), "50%"), (("5",), "100%"), (("11",), "50%"), (("11",), "100%"),
    ]  # fmt: skip
    clips = {layers: sum(count for some, count in reads if some == layers) for layers in (("5",), ("11",))}
    videos = len(vit_cache.ok_videos())
    few = 3 * 2  # one clip is looked at to learn its shape
    assert all(videos <= count <= videos + few for count in clips.values())
    assert len({report.result for report in reports}) == 4


def test_a_sweep_is_not_one_probe(options):
    with pytest.raises(UsageError, match="probe_all"):
        probe(dataclasses.replace(options, shots=("1", "2")))


def test_several_layers_stand_side_by_side(vit_cache, tmp_path):
    options = ProbeOptions(cache=vit_cache.path, clip_frames=6, out=tmp_path, layers=("5", "11"), solver="sgd")
    assert probe(options).num_parameters == 6 * (3 * 192 + 1)
    assert probe(dataclasses.replace(options, parts="prefix")).num_parameters == 6 * (2 * 192 + 1)
    assert probe(dataclasses.replace(options, parts="patch")).num_parameters == 6 * (2 * 192 + 1)
    assert probe(dataclasses.replace(options, probe="attentive", epochs=1, lrs=(1e-3,), weight_decays=(0.1,)))


def test_few_shots_and_seeds_are_reported_as_mean_and_deviation(options):
    report = probe(dataclasses.replace(options, shots=("3",), seeds=3))
    assert (report.shots, report.num_train, report.num_seeds) == ("3", 18, 3)
    record = read_record(Path(report.result))
    tops = [run["top1"] for run in record["runs"]]
    assert [run["seed"] for run in record["runs"]] == [0, 1, 2]
    assert report.top1 == pytest.approx(np.mean(tops))
    assert report.deviation == pytest.approx(np.std(tops, ddof=1))


def test_segments_are_averaged_and_count_as_one_video(options, synthetic_cache):
    report = probe(dataclasses.replace(options, clip_frames=2, segments=3, probe="knn"))
    assert report.num_eval_clips == 12
    fitted = fit_knn(synthetic_cache, clip_frames=2, segments=3, neighbours=(5, 10), device="cpu")
    assert fitted.score(synthetic_cache, split="test") == report.top1


def test_views_are_averaged_and_more_than_there_are_are_refused(synthetic_options, tmp_path):
    cache = extract(synthetic_options(views=2, num_videos=24, root=tmp_path / "videos", out=tmp_path)).cache
    options = ProbeOptions(cache=cache, clip_frames=6, out=tmp_path / "runs", views=2)
    assert probe(options).num_eval_clips == 6
    with pytest.raises(UsageError, match=r"view 2 is not in .* the views 0, 1"):
        probe(dataclasses.replace(options, views=3))


def test_missing_videos_are_counted_and_named(folder_dataset, tmp_path):
    for number in range(3):
        for split in ("train", "test"):
            for label in ("traffic", "cartoon"):
                first = next((folder_dataset / split / label).glob("*.mp4"))
                (folder_dataset / split / label / f"copy{number}.mp4").write_bytes(first.read_bytes())
    (folder_dataset / "test" / "traffic" / "copy0.mp4").write_bytes(b"no video")
    from vfz.pipeline.extraction.options import ExtractOptions

    cache = extract(
        ExtractOptions(
            dataset="folder", root=folder_dataset, encoder="demo", layers=("3",), image_size=64, out=tmp_path
        )
    ).cache
    report = probe(ProbeOptions(cache=cache, clip_frames=4, out=tmp_path / "runs"))
    assert (report.num_eval_clips, report.num_eval_missing, report.num_eval_planned) == (7, 1, 8)
    assert report.top1_of_planned == pytest.approx(report.top1 * 7 / 8)
    (missing,) = read_record(Path(report.result))["missing"]
    assert "copy0" in missing["id"]
    assert missing["status"] == "failed"
    assert missing["reason"]


def train(cache, out, **changes):
    settings = {
        "core": "rvm_rnn", "core_dim": 32, "num_layers": 1, "num_heads": 2, "readout_dim": 32, "readout_heads": 2,
        "clip_frames": 6, "epochs": 1, "name": "run",
    }  # fmt: skip
    return train_temporal(TrainOptions(cache=cache.path, out=out, **(settings | changes))).run


def test_a_probe_of_a_temporal_module_takes_its_clips_and_layers_from_the_run(options, synthetic_cache):
    run = train(synthetic_cache, options.out, clip_frames=4)
    report = probe(dataclasses.replace(options, temporal=run, clip_frames=None))
    assert report.features == run
    assert report.pool == "last"
    assert report.num_parameters == 6 * (32 + 1)
    for changes in ({"layer": "3"}, {"parts": "patch"}):
        with pytest.raises(UsageError, match="contradict"):
            probe(dataclasses.replace(options, temporal=run, **changes))
    with pytest.raises(UsageError, match="--sweep contradicts"):
        dataclasses.replace(options, temporal=run, sweep=True)


def test_a_runs_outputs_are_streamed_once_for_all_probes_of_them(options, synthetic_cache, reads):
    run = train(synthetic_cache, options.out)
    reads.clear()
    probe(dataclasses.replace(options, temporal=run))
    streamed = sum(count for _, count in reads)
    reads.clear()
    probe(dataclasses.replace(options, temporal=run, probe="knn"))
    probe(dataclasses.replace(options, temporal=run, pool="mean", seed=3))
    assert streamed == 48
    assert not reads
    other = probe(dataclasses.replace(options, temporal=run, probe="attentive", epochs=1))
    assert sum(count for _, count in reads) == 48
    features = read_record(Path(other.result))["features"]
    assert features["kind"] == "temporal"
    assert all(Path(one["path"], "tokens.npy").stat().st_size > one["num_bytes"] for one in features["derived"])


def test_a_derived_cache_holds_the_runs_outputs(options, synthetic_cache):
    run = train(synthetic_cache, options.out)
    probe(dataclasses.replace(options, temporal=run, probe="attentive", epochs=1))
    (path,) = (options.out / "derived").glob("run-test-*")
    stored_VCTND = np.load(path / "tokens.npy")
    model, _ = load_model(Path(run))
    rows = synthetic_cache.ok_videos("test")
    batch = synthetic_cache.read_batch([(row.id, range(6)) for row in rows], ("3",))
    with torch.no_grad():
        expected_VTND = model.features([batch.tokens("3", "all")])
    np.testing.assert_allclose(stored_VCTND[:, 0], expected_VTND.numpy(), rtol=1e-3, atol=1e-3)


def test_other_weights_make_another_derived_cache(options, synthetic_cache):
    run = train(synthetic_cache, options.out)
    first = probe(dataclasses.replace(options, temporal=run))
    again = train(synthetic_cache, options.out / "other", seed=1)
    other = probe(dataclasses.replace(options, temporal=again))
    assert not other.reused
    assert other.result != first.result
    assert len(list((options.out / "derived").iterdir())) == 4


def test_a_derived_cache_with_a_changed_byte_is_refused(options, synthetic_cache):
    run = train(synthetic_cache, options.out)
    probe(dataclasses.replace(options, temporal=run))
    (path,) = (options.out / "derived").glob("run-train-*")
    data = bytearray((path / "tokens.npy").read_bytes())
    data[-1] ^= 1
    (path / "tokens.npy").write_bytes(data)
    with pytest.raises(CacheFormatError, match=r"checksum does not match; delete .*run-train"):
        probe(dataclasses.replace(options, temporal=run, force=True))
    (path / "derived.json").write_text((path / "derived.json").read_text().replace('"num_prefix":0', '"num_prefix":1'))
    with pytest.raises(CacheFormatError, match="changed after it was written"):
        probe(dataclasses.replace(options, temporal=run, force=True))


def test_an_interrupted_derived_cache_leaves_nothing(options, synthetic_cache, monkeypatch):
    run = train(synthetic_cache, options.out)
    plain = FeatureCache.read_batch

    def stop(self, clips, *arguments, **keywords):
        if len(clips) > 1:
            raise KeyboardInterrupt
        return plain(self, clips, *arguments, **keywords)

    monkeypatch.setattr(FeatureCache, "read_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        probe(dataclasses.replace(options, temporal=run))
    assert not list((options.out / "derived").iterdir())


def test_a_run_trained_on_another_encoder_is_refused_field_by_field(options, synthetic_cache, vit_cache):
    run = train(synthetic_cache, options.out)
    with pytest.raises(
        CacheMismatchError, match=r"encoder\.name: cache vit_tiny_patch16_224, run tf_efficientnet_lite0"
    ):
        probe(dataclasses.replace(options, cache=vit_cache.path, temporal=run))


def test_outputs_that_are_not_finite_are_refused(options, synthetic_cache):
    run = Path(train(synthetic_cache, options.out))
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "model.safetensors")
    weights["core.output_norm.weight"][0] = float("nan")
    save_file(weights, run / "model.safetensors")
    with pytest.raises(RunError, match="not finite"):
        probe(dataclasses.replace(options, temporal=run))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer": "9"}, "it has 3"),
        ({"layers": ("3", "9")}, "it has 3"),
        ({"parts": "prefix"}, "no prefix tokens"),
        ({"eval_split": "nope"}, "nope"),
        ({"train_split": "val"}, "val"),
        ({"temporal": "nowhere"}, "no run"),
        ({"probe": "knn", "neighbours": (99,)}, "k 99 is more than"),
        ({"shots": ("1",)}, "one video only"),
        ({"clip_seconds": 0.1, "clip_stride": 2}, "give one of them"),
        ({"shots": ("x",)}, "neither a share"),
        ({"pool": "all"}, "--pool all is for --probe attentive; linear takes mean, last or frame"),
        ({"segments": 2, "views": 2}, "view 1"),
        ({"folds": 20}, "20 folds"),
    ],
)
def test_what_does_not_fit_the_cache_is_refused_in_one_line(options, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        probe(dataclasses.replace(options, **changes))
    assert "\n" not in str(caught.value)
    assert not options.out.exists()


@pytest.mark.parametrize("changes", [{"layer": "3", "layers": ("2",)}, {"probe": "attentive", "depth": 2}])
def test_options_that_contradict_each_other_are_refused(changes):
    with pytest.raises(UsageError):
        ProbeOptions(**changes)


def test_python_and_the_command_find_the_same(options, synthetic_cache):
    report = probe(options)
    fitted = fit_linear(synthetic_cache, clip_frames=6, device="cpu")
    assert fitted.chosen == report.chosen
    assert fitted.score(synthetic_cache) == report.top1
    assert fitted.best_head_score(synthetic_cache) == report.best_head_on_validation
    record = read_record(Path(report.result))
    assert fitted.predict(synthetic_cache).tolist() == record["runs"][0]["predicted"]


def test_two_results_are_compared_on_the_videos_they_share(options):
    one, other = (read_record(Path(probe(dataclasses.replace(options, pool=pool)).result)) for pool in ("mean", "last"))
    test = compare_records(one, other)
    assert test.num_videos == 12
    difference = one["runs"][0]["top1"] - other["runs"][0]["top1"]
    assert test.bootstrap.difference == pytest.approx(difference)
    assert (test.mcnemar.num_only_first - test.mcnemar.num_only_second) / 12 == pytest.approx(difference)
    other["videos"]["ids"] = [f"{id_}x" for id_ in other["videos"]["ids"]]
    with pytest.raises(UsageError, match="no video"):
        compare_records(one, other)


def test_the_record_is_json_that_any_reader_takes(options):
    report = probe(dataclasses.replace(options, solver="sgd", lrs=(1e30, 1e-2)))
    text = (Path(report.result) / "probe.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["runs"][0]["curves"]["train_loss"]

"""A cache that grows: a layer, a part or a view more, and no shard that is there is written again."""

import dataclasses
import multiprocessing
import shutil

import numpy as np
import pytest
from helpers.extraction import Notes

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.decoding.base import SOURCE_DIGEST_BYTES
from vfz.pipeline.errors import CacheError, CacheIncompleteError, TooManyFailuresError, UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.files import sha256_file
from vfz.pipeline.recipe import counted_layers


@pytest.fixture
def vit(folder_dataset, tmp_path):
    """Options for the sample videos through a small ViT, which has two parts per layer."""
    from vfz.pipeline.extraction.options import ExtractOptions

    return ExtractOptions(
        dataset="folder", root=folder_dataset, encoder="vit_tiny_patch16_224", random_weights=True, image_size=64,
        layers=("2",), parts=("patch",), fps=1, end_seconds=3.0, batch_size=8, shard_videos=2, out=tmp_path / "caches",
    )  # fmt: skip


def _files(path):
    """Digest of every file that may never change."""
    return {
        file.relative_to(path): sha256_file(file)
        for file in path.rglob("*")
        if file.is_file() and file.name not in {"index.parquet", "index.json", "extract.jsonl"}
    }


def _payloads(path, **selection):
    cache = FeatureCache(path, checksums="always")
    return {
        (row.key, key): value.tobytes()
        for row in cache.videos
        for key, value in cache.read(row.id, view=row.view, **selection).arrays.items()
    }


def _grown(first, second):
    """The cache of `first` after `second`, with the proof that nothing of it was touched."""
    path = FeatureCache(extract(first).cache).path
    before, tokens = _files(path), _payloads(path)
    assert extract(second).cache == str(path)
    after = _files(path)
    assert {name: after.get(name) for name in before} == before, "a file was written again"
    grown = _payloads(path)
    assert {key: grown[key] for key in tokens} == tokens
    return path, grown


@pytest.mark.parametrize("store", ["zarr", "webdataset"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_layer_and_a_part_added_later_equal_those_made_at_once(vit, tmp_path, store, precision):
    vit = dataclasses.replace(vit, store=store, precision=precision)
    everything = dataclasses.replace(vit, layers=("2", "11"), parts=("patch", "prefix"))
    path, grown = _grown(vit, everything)
    at_once = extract(dataclasses.replace(everything, out=tmp_path / "at once")).cache
    assert grown == _payloads(at_once)
    assert FeatureCache(path).layers == FeatureCache(at_once).layers
    assert FeatureCache(path).fingerprint == FeatureCache(at_once).fingerprint


def test_a_view_added_later_equals_one_made_at_once(vit, tmp_path):
    path, grown = _grown(vit, dataclasses.replace(vit, views=2))
    at_once = extract(dataclasses.replace(vit, views=2, out=tmp_path / "at once")).cache
    assert grown == _payloads(at_once)
    cache = FeatureCache(path)
    row = cache.ok_videos(view=1)[0]
    assert cache.views == (0, 1)
    assert (cache.read(row.id, view=1).tokens(2) != cache.read(row.id, view=0).tokens(2)).any()


def test_the_same_line_without_naming_layers_keeps_what_the_cache_has(vit, folder_dataset):
    path = extract(vit).cache
    shutil.copy(folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "train/traffic/more.mp4")
    report = extract(dataclasses.replace(vit, layers=None, parts=None))
    assert (report.cache, report.new_videos) == (path, 1)
    assert FeatureCache(path).layers == {"2": {"patch": (16, 192)}}


def test_a_new_cache_stores_the_layer_that_training_uses_and_one_of_four_goes_on_with_its_four(vit, folder_dataset):
    notes, default = Notes(), dataclasses.replace(vit, layers=None, parts=None)
    new = FeatureCache(extract(default, progress=notes).cache)
    assert list(new.layers) == ["11"] == list(check_default(new))
    (line,) = [line for line in notes.lines if "train-temporal" in line]
    assert line.startswith(
        "stores layer 11, the one that train-temporal and probe use; for more give --layers 2,5,8,11"
    )
    of_four = FeatureCache(extract(dataclasses.replace(vit, layers=("2", "5", "8", "11"), name="old")).cache)
    shutil.copy(folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "train/traffic/more.mp4")
    notes = Notes()
    report = extract(dataclasses.replace(default, name="old"), progress=notes)
    assert (report.cache, report.new_videos, report.num_lacking) == (str(of_four.path), 1, 0)
    assert list(FeatureCache(of_four.path).read("train/traffic/more").columns) == [
        (layer, "patch") for layer in ("2", "5", "8", "11")
    ]
    assert not [line for line in notes.lines if "stores layer" in line], "it was not asked what to store"


def check_default(cache):
    """The layers that training takes of a cache where it is told of none."""
    from vfz.temporal.training.options import TrainOptions

    return counted_layers(TrainOptions().layers or ("-1",), tuple(cache.layers))


def test_a_later_video_gets_every_column_at_once(vit, folder_dataset):
    extract(vit)
    extract(dataclasses.replace(vit, layers=("11",)))
    shutil.copy(folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "train/traffic/more.mp4")
    cache = FeatureCache(extract(vit).cache)
    old, new = cache.read("train/traffic/bikes"), cache.read("train/traffic/more")
    assert list(cache.layers) == ["2", "11"]
    for layer in (2, 11):
        np.testing.assert_array_equal(old.tokens(layer), new.tokens(layer))


def test_growth_that_was_cut_short_is_said_and_goes_on(vit):
    report = extract(vit)
    grown = dataclasses.replace(vit, layers=("2", "11"))
    path = FeatureCache(extract(grown).cache).path
    complete = _payloads(path)
    next(path.glob("shards/*.1.index.json")).unlink()  # as after a kill before the second shard's commit
    with pytest.raises(CacheIncompleteError, match=r"layer_11.*vfz extract"):
        FeatureCache(path)
    half = FeatureCache(path, allow_incomplete=True)
    assert len(half.ok_videos(layers=(2,))) == report.num_ok
    assert 0 < len(half.ok_videos(layers=(11,))) < report.num_ok
    extract(grown)
    assert _payloads(path) == complete


def test_a_video_that_is_gone_when_a_layer_is_added_lacks_it_and_gets_it_when_it_is_back(vit, folder_dataset):
    extract(vit)
    video, kept = folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "kept"
    video.rename(kept)
    grown = dataclasses.replace(vit, layers=("2", "11"), max_failures=0)
    path = extract(grown).cache
    cache = FeatureCache(path)
    assert [row.id for row in cache.ok_videos()] == [row.id for row in cache.ok_videos(layers=(11,))]
    assert "train/traffic/bikes" in {row.id for row in cache.ok_videos(layers=(2,))}
    assert "train/traffic/bikes" not in {row.id for row in cache.ok_videos(layers=(11,))}
    assert cache.read("train/traffic/bikes", layers=(2,)).tokens(2).shape[1:] == (16, 192)
    with pytest.raises(CacheError, match=r"bikes.*layer_11/patch.*no file"):
        cache.read("train/traffic/bikes", layers=(11,))
    kept.rename(video)
    report = extract(grown)
    assert report.new_videos == 1
    assert len(FeatureCache(path).ok_videos(layers=(2, 11))) == 4
    assert extract(grown).num_tried == 0


def _damage_in_the_middle(path):
    """The video does not decode any more, and seems to be the same file: only what no digest looks at is gone."""
    data = bytearray(path.read_bytes())
    data[SOURCE_DIGEST_BYTES:-SOURCE_DIGEST_BYTES] = bytes(len(data) - 2 * SOURCE_DIGEST_BYTES)
    path.write_bytes(data)


def test_a_layer_that_fails_takes_no_tokens_away_and_is_no_success(vit, folder_dataset):
    vit = dataclasses.replace(vit, max_failures=0)
    path = FeatureCache(extract(vit).cache).path
    ok, grown = len(FeatureCache(path).videos), dataclasses.replace(vit, layers=("2", "11"))
    _damage_in_the_middle(folder_dataset / "test/cartoon/bigbuckbunny.mp4")
    for options in (grown, grown, dataclasses.replace(grown, retry_failed=True)):
        with pytest.raises(TooManyFailuresError, match=r"1 videos failed, 0 are allowed; first: 'test/cartoon"):
            extract(options)
        assert len(FeatureCache(path, allow_incomplete=True).ok_videos(layers=(2,))) == ok
    report = extract(dataclasses.replace(grown, max_failures=9))
    assert (report.num_ok, report.num_failed, report.num_lacking) == (4, 0, 1)
    assert "layer_11/patch: failed" in report.failures["test/cartoon/bigbuckbunny"]


def test_another_attempt_at_a_layer_hides_no_tokens_while_it_is_not_made(vit, folder_dataset, monkeypatch):
    extract(vit)
    video, kept = folder_dataset / "train/traffic/bikes.mp4", folder_dataset / "kept"
    video.rename(kept)
    grown = dataclasses.replace(vit, layers=("2", "11"))
    path = extract(grown).cache
    kept.rename(video)
    monkeypatch.setattr("vfz.pipeline.extraction.extract.run_tasks", _die)
    with pytest.raises(KeyboardInterrupt):
        extract(grown)  # planned, and nothing done
    monkeypatch.undo()
    assert len(FeatureCache(path, allow_incomplete=True).ok_videos(layers=(2,))) == 4
    video.rename(kept)
    assert extract(grown).num_ok == 4
    assert len(FeatureCache(path).ok_videos(layers=(2,))) == 4


def _die(*_, **__):
    raise KeyboardInterrupt


def _extract(options, results):
    results.put(extract(options).cache)


def test_two_processes_that_add_different_layers_at_once_both_succeed(vit):
    path = FeatureCache(extract(vit).cache).path
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    runs = [
        context.Process(target=_extract, args=(dataclasses.replace(vit, layers=(layer,)), results))
        for layer in ("5", "11")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    extract(vit)  # a shard that one of them looked at before the other's layer was there
    cache = FeatureCache(path)
    assert list(cache.layers) == ["2", "5", "11"]
    assert len(cache.ok_videos()) == 4
    assert extract(vit).num_tried == 0


def test_a_part_the_encoder_does_not_have_is_refused(folder_dataset, vit):
    with pytest.raises(UsageError, match=r"have no prefix tokens.*--parts"):
        extract(dataclasses.replace(vit, encoder="demo", random_weights=False, layers=("3",), parts=("prefix",)))


def test_another_store_is_refused_for_a_cache_that_is_there(vit):
    extract(vit)
    with pytest.raises(UsageError, match="is a zarr store"):
        extract(dataclasses.replace(vit, store="webdataset"))


def test_a_codec_for_tars_is_refused(vit):
    with pytest.raises(UsageError, match="--compression zstd is for --store zarr"):
        dataclasses.replace(vit, store="webdataset", compression="zstd")

"""Caches that vfz of commit 7fe0c97 wrote are read, verified, converted and extended as that vfz did it.

They lie in `tests/data/old_stores`, whose `make.py` wrote them and what was read of them then. Each test works on a
copy elsewhere, younger than what it holds and without the videos, as a cache that came from another machine.
"""

import functools
import json

import numpy as np
import pytest
import timm
import torch
from helpers.extraction import command_line, shard_files
from helpers.old_stores import (
    DATA,
    KINDS,
    NEW_LAYER,
    OLD_CACHES,
    RUNS,
    STORES,
    add_later,
    expected,
    expected_arrays,
    lay_out,
    only_shown,
    read,
)

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.encoder.model import load_encoder
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.maintenance.convert import convert
from vfz.pipeline.maintenance.options import ConvertOptions
from vfz.pipeline.maintenance.verify import verify_cache
from vfz.pipeline.recipe import PRECISIONS, QUANTISED

ANEW = {"fp32": 1e-4, "fp16": 2e-4, "int8": 2e-3, "int4": 3e-2}
"""How far numbers that are computed again may be from those of then, RMS in parts of their deviation: on another CPU
the encoder's differ in their last bits, and where that changes a rounding, by a step. Here they are the same."""
CATALOG, LOG = {"index.json", "index.parquet"}, "extract.jsonl"
"""Files of a cache that change when it grows: the first are written anew, the other gets longer."""

every_cache = pytest.mark.parametrize("old", OLD_CACHES, ids=str)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The dataset as it was then."""
    return lay_out(tmp_path_factory.mktemp("then") / "clips")


@pytest.fixture(scope="module")
def later_clips(tmp_path_factory):
    """The dataset with a new video, and with the one that was missing."""
    root = lay_out(tmp_path_factory.mktemp("later") / "clips")
    add_later(root)
    return root


@pytest.fixture
def caches(tmp_path):
    """The folder that copies are put into."""
    return tmp_path / "caches"


def files_of(path):
    """The bytes of every file, by its place in the folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def stored_numbers(path):
    """The bytes of every stored array and of the times, by video, view and name."""
    cache = FeatureCache(path, checksums="always")
    clips = {row.key: cache.read(row.id, view=row.view) for row in cache.videos if row.status == "ok"}
    return {
        (*key, name): (array.dtype, array.shape, array.tobytes())
        for key, clip in clips.items()
        for name, array in (*clip.arrays.items(), ("pts_seconds", clip.pts_seconds))
    }


def plain_files(path):
    """SHA-256 of the files of every shard, without those that a codec wrote, which a later one may write otherwise."""
    return {
        shard: {name: sha256 for name, sha256 in files.items() if "/c/" not in name or name.startswith("pts_seconds")}
        for shard, files in shard_files(path).items()
    }


def check_same(arrays, then, *, precision="fp32"):
    """Bit for bit. Of int8 and int4, torch makes tokens with one rounding less on CPUs that multiply and add at once;
    those of then were made on one, and on another one they may differ in their last bit.
    """
    exact = precision not in QUANTISED or torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert arrays.keys() == then.keys()
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (then[name].dtype, then[name].shape), name
        if exact or name.endswith("pts_seconds"):
            assert array.tobytes() == then[name].tobytes(), name
        else:
            np.testing.assert_allclose(array, then[name], rtol=1e-6, atol=1e-6, err_msg=name)


def check_close(arrays, then, *, precision):
    """As close as numbers of that precision are that were computed again; the times are the same."""
    assert arrays.keys() == then.keys()
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (then[name].dtype, then[name].shape), name
        if name.endswith("pts_seconds"):
            assert array.tobytes() == then[name].tobytes(), name
        else:
            error = np.sqrt(np.mean((array - then[name]) ** 2)) / np.std(then[name])
            assert error <= ANEW[precision], f"{name} is off by {error:.2g} of its deviation"


def check_same_weights(path):
    """A cache can be extended only with the very weights it was made with, and half of them are drawn by torch."""
    header = json.loads((path / "vfz.json").read_bytes())
    request, versions = header["provenance"]["encoder_request"], header["provenance"]["versions"]
    now, then = (
        weights_now(request["name"], random=request["random_weights"]),
        header["recipe"]["encoder"]["weights_sha256"],
    )
    assert now == then, (
        f"torch {torch.__version__} and timm {timm.__version__} give {request['name']} other weights than those that "
        f"made the old caches (torch {versions['torch']}, timm {versions['timm']}). If they are others here, vfz is "
        "not to blame: run the tests with the old ones, or add caches of another encoder that is the same in both"
    )


@functools.cache
def weights_now(name, *, random):
    """The digest of an encoder's weights."""
    return load_encoder(name, image_size=32, random_weights=random).weights_sha256


def test_both_encoders_are_there_in_every_store_and_precision():
    assert len(OLD_CACHES) == 2 * len(KINDS) * len(PRECISIONS) == 16
    for old in OLD_CACHES:
        header = json.loads((old.folder / "vfz.json").read_bytes())
        assert header["contents"]["store"] == old.store
        assert header["recipe"]["storage"]["precision"] == old.precision
        assert len(list(old.folder.glob("shards/*.0.index.json"))) == 2
        assert {row[4] for row in expected()[old.key]["rows"]} == {"ok", "failed", "missing"}
    grown = [old for old in OLD_CACHES if (old.folder / "contents" / "1.json").exists()]
    assert [old.store for old in grown] == list(KINDS)
    assert all(len(list(old.folder.glob("shards/*.1.index.json"))) == 2 for old in grown)


def test_they_stay_small():
    files = [path for folder in (STORES, RUNS) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    assert not [path for path in DATA.rglob("*") if path.is_symlink()]


@every_cache
def test_it_is_read_bit_for_bit_as_it_was_then(old, caches):
    says, arrays = read(old.copy_to(caches))
    assert says == {name: expected()[old.key][name] for name in says}
    check_same(arrays, expected_arrays(f"{old.key}/then"), precision=old.precision)


@every_cache
def test_verifying_finds_no_problem(old, caches):
    report = verify_cache(old.copy_to(caches))
    assert report.problems == ()
    assert report.num_videos == sum(row[4] == "ok" for row in expected()[old.key]["rows"])


@every_cache
def test_the_encoder_of_today_gives_its_golden_tokens(old, caches, clips, capsys):
    path = old.copy_to(caches)
    check_same_weights(path)
    line = ["cache", "verify", str(path), "--encoder", "--root", str(clips), "--device", "cpu", "--json"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["intact"]
    assert report["encoder"]["passed"]
    assert [column["column"] for column in report["encoder"]["columns"]] == [
        f"layer_{layer}/{part}" for layer, parts in expected()[old.key]["layers"].items() for part in parts
    ]
    assert report["encoder"]["num_decoded"] == report["encoder"]["num_frames"] >= 12
    assert report["encoder"]["max_pixel_difference"] <= 2


@every_cache
def test_converting_it_to_the_other_store_copies_every_stored_number(old, caches, tmp_path):
    path = old.copy_to(caches)
    before = files_of(path)
    (twin,) = (one for one in OLD_CACHES if one.key == old.key and one.store != old.store)
    compression = twin.compression or "none"
    report = convert(ConvertOptions(cache=path, out=tmp_path / "converted", store=twin.store, compression=compression))
    assert report.fingerprint == expected()[old.key]["fingerprint"]
    assert stored_numbers(report.cache) == stored_numbers(path)
    assert plain_files(report.cache) == plain_files(twin.folder), "as that vfz wrote it in that store"
    assert read(report.cache)[0] == read(path)[0], "the ledger, and the folder's name"
    assert verify_cache(report.cache).problems == ()
    assert files_of(path) == before, "the old cache is only read"


@pytest.mark.parametrize("old", [old for old in OLD_CACHES if old.precision != PRECISIONS[-1]], ids=str)
def test_converting_it_to_a_lower_precision_gives_what_it_gave_then(old, caches, tmp_path):
    path, lower = old.copy_to(caches), PRECISIONS[PRECISIONS.index(old.precision) + 1]
    report = convert(ConvertOptions(cache=path, out=tmp_path / "converted", precision=lower))
    says, arrays = read(report.cache)
    assert {name: says[name] for name in ("folder", "fingerprint")} == expected()[old.key]["converted"]
    check_close(only_shown(arrays), expected_arrays(f"{old.key}/converted"), precision=lower)
    assert says["rows"] == expected()[old.key]["rows"]
    assert verify_cache(report.cache).problems == ()
    with pytest.raises(UsageError, match="what that rounded off cannot be given back"):
        convert(ConvertOptions(cache=report.cache, out=tmp_path / "back", precision=old.precision))


@every_cache
def test_the_same_line_again_finds_nothing_to_do_and_touches_nothing(old, caches, clips, capsys):
    path = old.copy_to(caches)
    check_same_weights(path)
    before = files_of(path)
    assert main(command_line(old.options(clips, caches))[3:]) == 0
    shown = capsys.readouterr().out
    assert "nothing to do: every video was extracted before" in shown
    assert str(path) in shown
    assert files_of(path) == before
    assert list(caches.iterdir()) == [path]


@every_cache
def test_the_same_line_with_more_extends_it_and_leaves_what_is_there_as_it_is(old, caches, later_clips):
    """A layer, a new video, and one that was missing."""
    path = old.copy_to(caches)
    check_same_weights(path)
    before = files_of(path)
    options = old.options(later_clips, caches, layers=(*old.layers, NEW_LAYER))
    report = extract(options)
    assert list(caches.iterdir()) == [path], "it was found again by its name, which has the fingerprint in it"
    assert report.fingerprint == expected()[old.key]["fingerprint"]
    assert (report.num_missing, report.num_lacking, report.num_pending) == (0, 0, 0)

    after = files_of(path)
    kept = before.keys() - CATALOG - {LOG}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert after[LOG].startswith(before[LOG])

    _, arrays = read(path)
    then = expected_arrays(f"{old.key}/then")
    check_same({name: arrays[name] for name in then}, then, precision=old.precision)
    check_close(only_shown(arrays), expected_arrays(f"{old.key}/extended"), precision=old.precision)
    assert {name.split("/")[-2] for name in arrays if not name.endswith("pts_seconds")} == {*old.layers, NEW_LAYER}
    assert verify_cache(path).problems == ()
    assert extract(options).num_tried == 0

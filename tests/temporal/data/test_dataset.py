"""Clips for a model of one's own: the same items whoever reads them."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
from helpers.tiny_cache import fill_cache, new_cache, num_frames_of
from torch.utils.data import DataLoader

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.pipeline.format.labels import LabelSet, write_label_set
from vfz.temporal import ClipDataset, TrainOptions
from vfz.temporal.probes.estimators import FitSettings
from vfz.temporal.training.distributed import join_ranks
from vfz.temporal.training.experiment import build_experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen videos of 3 to 18 frames; v4 failed."""
    cache = tmp_path_factory.mktemp("clips") / "cache"
    new_cache(cache, num_videos=16, shard_size_videos=4)
    fill_cache(cache, bad=("v4",))
    return cache


@pytest.fixture(scope="module")
def int8_folder(tmp_path_factory):
    cache = tmp_path_factory.mktemp("clips") / "cache"
    new_cache(cache, num_videos=6, precision="int8", dim=130)
    fill_cache(cache)
    return cache


def _frames(item):
    return (item["pts_seconds"] * 6).round().int().tolist()


def test_an_item_is_a_clip_of_its_video(folder):
    cache = FeatureCache(folder)
    dataset = ClipDataset(folder, num_frames=4, stride=2, parts="patch")
    assert [row.id for row in dataset.videos] == [row.id for row in cache.ok_videos("train")]
    for index, row in enumerate(cache.ok_videos("train")):
        item = dataset[index]
        assert item.keys() == {"tokens", "frame_mask", "label", "id", "pts_seconds"}
        assert (item["id"], item["label"]) == (row.id, row.label)
        assert item["tokens"].dtype == torch.float32
        expected = cache.read(row.id, _frames(item)).tokens(11)
        np.testing.assert_array_equal(item["tokens"].numpy(), expected)
        if row.num_frames >= 7:
            assert set(np.diff(_frames(item))) == {2}
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_short_video_repeats_its_last_frame_and_the_mask_says_so(folder):
    item = ClipDataset(folder, num_frames=6)[0]
    assert _frames(item) == [0, 1, 2, 2, 2, 2]
    assert item["frame_mask"].tolist() == [True, True, True, False, False, False]


CHANGES = (
    {},
    {"clip_stride": 2, "seed": 3},
    {"clip_frames": 5, "parts": "prefix", "layers": ("2",)},
    {"clip_seconds": 0.5},
)
NAMES = {"clip_frames": "num_frames", "clip_stride": "stride", "clip_seconds": "step_seconds"}


@pytest.mark.parametrize("changes", CHANGES)
def test_batches_are_those_that_training_sees_with_its_defaults_and_with_others(folder, tmp_path, changes):
    """Tokens, labels, masks and times, bit for bit and in the same order."""
    options = TrainOptions(cache=(folder,), out=tmp_path, device="cpu", eval_split="val", **changes)
    with join_ranks("cpu") as ranks:
        experiment = build_experiment(options, ranks)
    dataset = ClipDataset(folder, **{NAMES.get(name, name): value for name, value in changes.items()})
    loader = DataLoader(dataset, batch_size=options.batch_size, sampler=dataset.order)
    seen = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        trained = [batch for parts in experiment.steps(epoch) for batch in parts]
        for ours, theirs in zip(loader, trained, strict=True):
            assert ours["id"] == list(theirs.video_ids)
            assert torch.equal(ours["tokens"], theirs.layers_BTND[0])
            assert torch.equal(ours["frame_mask"], theirs.frame_mask_BT)
            assert torch.equal(ours["pts_seconds"], theirs.pts_seconds_BT)
            assert torch.equal(ours["label"], theirs.labels_B)
            assert not ours["frame_mask"].all(), "some videos are shorter than a clip"
            seen.append(ours["id"])
    assert seen[0] != seen[1]


def test_defaults_are_the_options_of_training():
    """Of every parameter that both have."""
    ours = {name: one.default for name, one in inspect.signature(ClipDataset).parameters.items()}
    theirs = TrainOptions()
    assert (ours["split"], ours["num_frames"], ours["stride"]) == (
        theirs.train_split, theirs.clip_frames, theirs.clip_stride,
    )  # fmt: skip
    assert (ours["step_seconds"], ours["layers"], ours["parts"]) == (theirs.clip_seconds, theirs.layers, theirs.parts)
    assert ((ours["view"],), ours["seed"]) == (theirs.views, theirs.seed)
    probe = FitSettings()
    assert (probe.split, probe.clip_frames, probe.clip_stride, probe.parts, probe.layers) == (
        theirs.train_split, theirs.clip_frames, theirs.clip_stride, theirs.parts, theirs.layers,
    )  # fmt: skip


def test_videos_without_a_label_are_left_out_where_that_is_asked_and_targets_are_given(folder):
    labels = {"v0": (0.5, float("nan")), "v1": (1.0, 2.0)}
    write_label_set(folder, LabelSet(name="speed", kind="regression", names=("x", "y"), labels=labels))
    cache = FeatureCache(folder, labels="speed")
    dataset = ClipDataset(cache, num_frames=3, labelled=True)
    assert [row.id for row in dataset.videos] == ["v0", "v1"]
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    np.testing.assert_array_equal(batch["targets"], [[0.5, np.nan], [1, 2]])
    assert batch["label"].tolist() == [-1, -1]
    assert len(ClipDataset(cache)) > 2
    with pytest.raises(UsageError, match="in view 0 and a label; its splits are"):
        ClipDataset(cache, "val", labelled=True)


def test_centred_clips_lie_in_the_middle_in_every_epoch(folder):
    dataset = ClipDataset(folder, None, num_frames=3, position="centre")
    index = [row.id for row in dataset.videos].index("v6")
    for epoch in range(3):
        dataset.set_epoch(epoch)
        assert num_frames_of("v6") == 9
        assert _frames(dataset[index]) == [3, 4, 5]


def test_random_positions_follow_from_seed_epoch_and_index_alone(folder):
    def starts(seed=0, epoch=0):
        dataset = ClipDataset(folder, num_frames=2, seed=seed)
        dataset.set_epoch(epoch)
        order = np.random.permutation(len(dataset))  # noqa: NPY002 - whatever was drawn before must not matter
        found = {int(index): _frames(dataset[int(index)])[0] for index in order}
        return [found[index] for index in range(len(dataset))]

    assert starts() == starts()
    assert starts() != starts(epoch=1)
    assert starts() != starts(seed=1)
    assert len(set(starts())) > 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_give_the_items_of_one_process_in_every_epoch(folder, method):
    dataset = ClipDataset(folder, num_frames=4, layers=(2, 11), parts="all")
    loader = DataLoader(
        dataset, batch_size=4, num_workers=2, multiprocessing_context=method, persistent_workers=True, timeout=60
    )
    for epoch in range(2):  # the workers of the second epoch are those of the first
        dataset.set_epoch(epoch)
        here = [dataset[index] for index in range(len(dataset))]
        there = list(loader)
        assert [name for batch in there for name in batch["id"]] == [item["id"] for item in here]
        assert torch.equal(torch.cat([batch["label"] for batch in there]), torch.tensor([i["label"] for i in here]))
        for layer in ("2", "11"):
            together = torch.cat([batch["tokens"][layer] for batch in there])
            assert torch.equal(together, torch.stack([item["tokens"][layer] for item in here]))
            assert together.shape[1:] == (4, 5, 8)


@pytest.mark.parametrize("parts", ["patch", "prefix", "all"])
def test_stored_items_expand_to_the_same_tokens(int8_folder, parts):
    cache = FeatureCache(int8_folder)
    options = {"num_frames": 3, "layers": (2, 11), "parts": parts}
    stored, plain = ClipDataset(cache, stored=True, **options), ClipDataset(cache, **options)
    ours, theirs = (next(iter(DataLoader(dataset, batch_size=4))) for dataset in (stored, plain))
    names = ("patch", "prefix") if parts == "all" else (parts,)
    assert ours["stored"].keys() == {
        f"layer_{layer}/{name}{end}" for layer in (2, 11) for name in names for end in ("", "_scale")
    }
    assert {tensor.dtype for tensor in ours["stored"].values()} == {torch.int8, torch.float16}
    expanded = stored.expand(ours["stored"], "cpu")
    assert expanded.keys() == {"2", "11"}
    for layer, tokens in expanded.items():
        assert torch.equal(tokens, theirs["tokens"][layer])
    single = ClipDataset(cache, stored=True, num_frames=3)
    item = single[0]
    assert torch.equal(single.expand(item["stored"]), ClipDataset(cache, num_frames=3)[0]["tokens"])


def test_a_pickled_dataset_gives_the_same_items(folder):
    dataset = ClipDataset(folder, num_frames=4)
    dataset.set_epoch(5)
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert torch.equal(again[3]["tokens"], dataset[3]["tokens"])


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (UsageError, "position is 'middle'.*allowed: random, centre", {"position": "middle"}),
        (UsageError, "parts 'cls'", {"parts": "cls"}),
        (UsageError, "clips of 0 frames", {"num_frames": 0}),
        (UsageError, "clips of 2.5 frames", {"num_frames": 2.5}),
        (UsageError, "4 frames 0 apart", {"num_frames": 4, "stride": 0}),
        (UsageError, r"parts \['patch'\]", {"parts": ["patch"]}),
        (UsageError, "seed -1 is no seed", {"seed": -1}),
        (UsageError, "clip frames 2 cached frames and 0.5 s apart; give one", {"stride": 2, "step_seconds": 0.5}),
        (UsageError, "layers is empty; name some of the layers 2, 11 of", {"layers": ()}),
        (UsageError, "layers is 1.5", {"layers": 1.5}),
        (UsageError, "view 1 is not in .*; it has the views 0$", {"view": 1}),
        (UsageError, "view '0' is not in", {"view": "0"}),
        (UnknownNameError, "did you mean train", {"split": "trian"}),
        (UnknownNameError, "unknown layer '12'", {"layers": (12,)}),
    ],
)
def test_what_cannot_be_is_refused(folder, error, message, options):
    with pytest.raises(error, match=message) as caught:
        ClipDataset(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [11, "11", (11,)])
def test_one_layer_is_a_selection_of_one(folder, layers):
    dataset = ClipDataset(folder, num_frames=4, layers=layers)
    assert dataset.layers == ("11",)
    assert dataset[0]["tokens"].shape == (4, 5, 8)


def test_the_last_layer_is_chosen_by_naming_none_and_all_by_naming_them(folder):
    assert ClipDataset(folder).layers == ClipDataset(folder, layers=-1).layers == ("11",)
    every = FeatureCache(folder).layers
    assert ClipDataset(folder, num_frames=4, layers=tuple(every))[0]["tokens"].keys() == {"2", "11"}


def test_a_view_is_chosen(tmp_path):
    new_cache(tmp_path / "cache", num_videos=4, views=(0, 2))
    fill_cache(tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    assert [row.view for row in ClipDataset(cache, num_frames=3).videos] == [0, 0, 0]
    dataset = ClipDataset(cache, num_frames=3, view=2)
    assert [(row.id, row.view) for row in dataset.videos] == [("v0", 2), ("v1", 2), ("v3", 2)]
    expected = cache.read("v0", [0, 1, 2], view=2).tokens(11, "all")
    np.testing.assert_array_equal(dataset[0]["tokens"].numpy(), expected)
    with pytest.raises(UsageError, match=r"view 1 is not in .*; it has the views 0, 2"):
        ClipDataset(cache, view=1)


def test_videos_that_all_lack_the_tokens_are_told_with_the_splits_there_are(tmp_path):
    new_cache(tmp_path / "cache", num_videos=3)
    fill_cache(tmp_path / "cache", bad=("v2",))
    with pytest.raises(UsageError, match=r"no video of split 'val' of .* has tokens of layers 11 in view 0; its s"):
        ClipDataset(tmp_path / "cache", "val")

"""Label sets of several labels a video, and of numbers, from training to figures that can be worked out again."""

import json
import shutil

import numpy as np
import pytest
from helpers.training import arguments_of, losses_of, small_options

from vfz.cli.main import main
from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.format.labels import LabelSet, write_label_set

SIDES, PLACES = ("left", "high", "far"), ("metres", "degrees")


@pytest.fixture(scope="module")
def cache(synthetic_cache, tmp_path_factory):
    """The session's cache with `sides` and `places`, which show in the pictures: along the three directions in which
    the videos' mean tokens differ most. Two videos are not known, and of a third one number is not.
    """
    folder = tmp_path_factory.mktemp("labelled") / "clips"
    shutil.copytree(synthetic_cache.path, folder)
    ids = [row.id for row in synthetic_cache.videos]
    tokens_VD = np.stack([synthetic_cache.read(id_, layers=("3",)).tokens("3").mean(axis=(0, 1)) for id_ in ids])
    along_V3 = np.linalg.svd(tokens_VD - tokens_VD.mean(axis=0), full_matrices=False)[0][:, :3] * len(ids) ** 0.5
    sides = {id_: frozenset(np.flatnonzero(along > 0.2).tolist()) for id_, along in zip(ids, along_V3, strict=True)}
    places = {id_: (300 + 20 * float(a), 0.1 * float(b)) for id_, (a, b, _) in zip(ids, along_V3, strict=True)}
    places[ids[0]] = (float("nan"), places[ids[0]][1])
    del sides[ids[1]], places[ids[1]], sides[ids[-1]], places[ids[-1]]
    write_label_set(folder, LabelSet(name="sides", kind="multilabel", names=SIDES, labels=sides))
    write_label_set(folder, LabelSet(name="places", kind="regression", names=PLACES, labels=places))
    return FeatureCache(folder)


@pytest.fixture
def options(cache, tmp_path):
    return small_options(cache, tmp_path / "runs", core="identity", epochs=12, lr=3e-3, labels="sides")


def run_json(arguments, capsys):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("labels", "task", "headline", "protocol"),
    [("sides", "multilabel", "map", "streaming"), ("places", "regression", "r2", "clip")],
)
def test_the_kind_of_the_set_chooses_the_task_which_learns(options, capsys, labels, task, headline, protocol):
    arguments = [*arguments_of(options), "--labels", labels, "--protocol", protocol]
    trained = run_json(arguments, capsys)
    assert (trained["task"], trained["headline"]) == (task, headline)
    losses = losses_of(options.out / "run")
    assert sum(losses[-5:]) < sum(losses[:5])
    assert trained[headline] > {"map": 0.5, "r2": 0.0}[headline]
    assert run_json(["evaluate", options.out / "run"], capsys)[headline] == pytest.approx(trained[headline])

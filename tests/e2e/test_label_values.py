"""Label sets of several labels a video, and of numbers, from training to figures that can be worked out again."""

import json

import pytest
from helpers.training import arguments_of, losses_of, small_options

from vfz.cli.main import main


@pytest.fixture
def options(labelled_cache, tmp_path):
    return small_options(labelled_cache, tmp_path / "runs", core="identity", epochs=12, lr=3e-3, labels="sides")


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

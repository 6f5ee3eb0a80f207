"""Workflows whose stages do not fit each other end before the first begins, in one line, through the command line."""

from pathlib import Path

import pytest

from vfz.cli.main import main
from vfz.pipeline.errors import UsageError
from vfz.temporal.run_record import write_run
from vfz.temporal.training.experiment import _MAY_DIFFER
from vfz.temporal.training.options import TrainOptions, option_values
from vfz.temporal.workflow.check import check_workflow
from vfz.temporal.workflow.file import in_keys, read_workflow

STAGES = """
[extract]
dataset = "synthetic"
encoder = "demo"
layers = [2, 3]
image-size = 64
num-videos = 24
num-frames = 6
size = 64

[[convert]]
name = "int8"
precision = "int8"
layers = [3]

[defaults.train-temporal]
clip-frames = 6
epochs = 1
layers = [3]

[[train-temporal]]
name = "first"
core = "m"

[[train-temporal]]
name = "second"
core = "gmmix"
cache = "int8"

[[evaluate]]
run = "second"
cache = "int8"
split = "train"

[[probe]]
layers = [2]
name = "of-tokens"

[[probe]]
temporal = "first"
name = "of-first"

[compare]
baseline = "second"

[[predict]]
run = "second"
cache = "int8"
split = "test"

[[predict]]
probe = "of-first"
"""
FIRST, SECOND = 'core = "m"', 'core = "gmmix"'
EVALUATED, OF_TOKENS, OF_FIRST = 'split = "train"', "layers = [2]\n", 'temporal = "first"'


@pytest.fixture
def workflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("all.toml")
    path.write_text(STAGES)
    return path


def refused(path, capsys, *flags, code=2):
    """What `vfz run` says of it; nothing was made."""
    before = sorted(Path().rglob("*"))
    assert main(["run", str(path), *flags]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sorted(Path().rglob("*")) == before, "nothing was begun"
    (line,) = [line for line in printed.err.splitlines() if line.startswith("vfz: error: ")]
    return line.removeprefix("vfz: error: ")


def test_stages_that_fit_pass(workflow, capsys):
    assert main(["run", str(workflow), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("to do") == 10
    assert [path.name for path in Path().iterdir()] == ["all.toml"]


TRAINING_2 = "all.toml: [[train-temporal]] number 2: "


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_heads_that_do_not_divide_the_channels_are_told_before_the_extraction(workflow, capsys, flags):
    workflow.write_text(STAGES.replace(SECOND, f"{SECOND}\ncore-dim = 64\nnum_heads = 12"))
    said = refused(workflow, capsys, *flags)
    assert (
        said
        == f"{TRAINING_2}`num_heads` 12: 12 attention heads do not divide 64 channels; use one of 1, 2, 4, 8, 16, 32"
    )


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (SECOND, "readout-dim = 64\nreadout-heads = 12", "`readout-heads` 12: 12 attention heads do not divide 64 "),
        (SECOND, "num-heads = 5", "`num-heads` 5: 5 attention heads do not divide 112 channels; use one of 1, 2, 4, 7"),
        (SECOND, "views = [1]", "`views` 1: the cache that [[convert]] makes has 0; choose"),
        (SECOND, 'parts = "prefix"', "no prefix tokens"),
        (SECOND, 'mixer = "laast"', "`mixer` 'laast' is not allowed; choose from last, mean, xattn"),
        (SECOND, 'optimizer = "adamm"', "unknown optimizer 'adamm'; did you mean"),
        (SECOND, 'task = "boxes"\nprotocol = "clip"', "boxes"),
        (SECOND, 'train-split = "trian"', "`train-split` 'trian' is not in the cache that [[convert]]"),
        (SECOND, 'eval-split = "val"', "`eval-split` 'val' is not in the cache that [[convert]]"),
        (SECOND, 'targets = "nowhere.npz"\ntask = "boxes"', "`targets` nowhere.npz: there is no such file"),
        (SECOND, 'targets = "nowhere.npz"', "`targets` is not for task classify, which takes labels; leave it out"),
        (SECOND, 'labels = "mine"', "`labels` mine: a label set is added by vfz cache label"),
        (SECOND, "dropout = 0.5\ncore-dim = 8\nreadout-hidden = 8", "classify readout has no mlp_hidden"),
        (SECOND, "clip-stride = 2\nclip-seconds = 0.5", "give one of them"),
        (SECOND, "token-dropout = 0.5\ntask = 'points'", "token dropout 0.5 with task points"),
        (SECOND, "resume = true", "`resume` is not needed: vfz run goes on with what is there; leave it out"),
        (SECOND, 'device = "cuda:17"', "cuda:17"),
    ],
)
def test_a_training_that_could_not_begin_is_told_before_the_extraction(workflow, capsys, place, change, words):
    text = STAGES.replace(place, f"{place}\n{change}", 1)
    for key in ("layers = [3]", "clip-frames = 6"):
        if key.partition(" ")[0] in change:
            text = text.replace(key, "")
    workflow.write_text(text)
    said = refused(workflow, capsys)
    assert said.startswith(TRAINING_2)
    assert words in said.replace("[[convert]] number 1", "[[convert]]")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "int8"\nprecision = "int8"\nlayers = [3]', 'name = "int8"\nprecision = "int8"\nlayers = [7]',
         "all.toml: [[convert]] number 1: layer '7' is not in the cache that [extract] makes; it has 2, 3"),
        ('precision = "int8"', 'precision = "fp32"',
         "[[convert]] number 1: `precision` fp32: [extract] stores fp16, and what that rounds off cannot be"),
        ('precision = "int8"', 'parts = "prefix"', "[[convert]] number 1: `parts` prefix: no layer of"),
        ('precision = "int8"', 'splits = "val"', "[[convert]] number 1: unknown split 'val'"),
        ('precision = "int8"', 'splits = "test"', "number 2: `train-split` 'train' is not in the cache that"),
        ('name = "int8"\nprecision = "int8"', "", "a cache is named in [[train-temporal]] number 2; leave it out, the"),
        ('core = "gmmix"\ncache = "int8"', 'core = "gmmix"\ncache = "int4"',
         "leave it out, the workflow uses the one it extracts, or name one of [[convert]] (int8)"),
        ('run = "second"\ncache = "int8"', 'run = "second"',
         "[[evaluate]] number 1: [[train-temporal]] number 2 is trained on another cache than this one evaluates"),
        ('run = "second"', 'run = "secnd"', "run of [[evaluate]] number 1 in all.toml 'secnd'; did you mean second"),
        (EVALUATED, 'split = "val"', "[[evaluate]] number 1: `split` 'val' is not in the cache that [[convert]]"),
        (OF_TOKENS, "layers = [4]\n", "[[probe]] number 1: layer '4' is not in the cache that [extract] makes; it"),
        (OF_TOKENS, "layers = [2]\neval-split = 'val'\n", "[[probe]] number 1: `eval-split` 'val' is not in the cache"),
        (OF_TOKENS, "layers = [2]\npool = 'all'\n",
         "[[probe]] number 1: `pool` all is for `probe` attentive; linear takes mean"),
        (OF_FIRST, 'temporal = "frist"', "unknown run of [[probe]] number 2 in all.toml 'frist'; did you mean first"),
        (OF_FIRST, OF_FIRST + "\nlayers = [3]", "[[probe]] number 2: `layers` and `parts` contradict `temporal`"),
        ('encoder = "demo"', 'encoder = "dmeo"', "all.toml: [extract]: unknown encoder 'dmeo'; did you mean demo"),
        ("layers = [2, 3]", "layers = [2, 9]", "[extract]: tf_efficientnet_lite0 has no layer '9'"),
        ("image-size = 64", "image-size = 64\nsplits = 'val'", "[extract]: `splits` 'val' is not in"),
        ("num-frames = 6", "num-frames = 7", "[extract]: `num-frames` 7 must be a multiple of 3"),
        ("[[convert]]\nname", "[[convert]]\ndry-run = true\nname", "dry-run is for a whole workflow; leave it out"),
        ('baseline = "second"', 'baseline = "third"', "unknown baseline of [compare] in all.toml 'third'"),
        ('baseline = "second"', 'runs = ["first", "thrd"]', "unknown run of [compare] in all.toml 'thrd'"),
        ('split = "test"', 'split = "val"', "[[predict]] number 1: `split` 'val' is not in the cache that [[convert]]"),
        ('cache = "int8"\nsplit = "test"', "", "[[train-temporal]] number 2 is made on another cache than this one"),
        ('probe = "of-first"', 'probe = "of-frist"', "probe of [[predict]] number 2 in all.toml 'of-frist'; did"),
        ('probe = "of-first"', "", "[[predict]] number 2: `run` and `probe` say what is asked, and neither was given"),
        ('probe = "of-first"', 'probe = "of-first"\nout = "a.txt"', "[[predict]] number 2: `out` a.txt ends neither"),
        ("[extract]", "[cache.convert]\nname = 'a'\n[extract]", "no stage of a workflow; remove it; write [convert]"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_each_other_are_told_before_the_extraction(workflow, capsys, old, new, words):
    assert old in STAGES
    workflow.write_text(STAGES.replace(old, new, 1))
    assert words in refused(workflow, capsys)


def test_a_weights_file_that_is_not_there_does_not_pass_a_dry_run(workflow, capsys):
    workflow.write_text(STAGES.replace('encoder = "demo"', 'encoder = "demo"\nweights = "nowhere.pth"'))
    said = refused(workflow, capsys, "--dry-run", code=1)
    assert said.startswith("all.toml: [extract]: weights nowhere.pth: there is no such file; give")


def test_a_root_that_is_not_there_does_not_pass_a_dry_run(workflow, capsys):
    workflow.write_text('[extract]\ndataset = "folder"\nroot = "videos/nowhere"\nencoder = "demo"\n')
    for flags in ((), ("--dry-run",)):
        said = refused(workflow, capsys, *flags)
        assert said.startswith("all.toml: [extract]: ")
        assert "videos/nowhere" in said


def test_a_root_that_nobody_named_passes_a_dry_run_with_a_word_and_no_real_one(workflow, capsys, monkeypatch):
    monkeypatch.delenv("VFZ_DATA_FOLDER", raising=False)
    workflow.write_text('[extract]\ndataset = "folder"\nencoder = "demo"\n[train-temporal]\ncore = "m"\n')
    assert main(["run", str(workflow), "--dry-run"]) == 0
    said = "pass `root` or set $VFZ_DATA_FOLDER"
    assert f"{said}; splits and classes were not looked at" in capsys.readouterr().err
    assert said in refused(workflow, capsys)


def test_videos_to_predict_that_are_not_there_are_told_before_the_extraction(workflow, capsys):
    text = '[extract]\ndataset = "folder"\nroot = "videos"\nencoder = "demo"\n[train-temporal]\nname = "run"\n'
    for split in ("train", "test"):
        path = Path("videos", split, "walk", "1.mp4")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"never opened")
    workflow.write_text(f'{text}[predict]\nrun = "run"\nvideos = "nowhere"\n')
    assert refused(workflow, capsys).startswith("all.toml: [predict]: no file or folder nowhere; name videos")


def test_a_task_without_its_targets_is_told_before_the_extraction(workflow, capsys):
    for split in ("train", "test"):
        path = Path("videos", split, "walk", "1.mp4")
        path.parent.mkdir(parents=True)
        path.write_bytes(b"never opened")
    text = '[extract]\ndataset = "folder"\nroot = "videos"\nencoder = "demo"\n[train-temporal]\ntask = "pose"\n'
    workflow.write_text(text)
    said = refused(workflow, capsys)
    assert said == (
        "all.toml: [train-temporal]: `task` pose needs a targets.npz, and videos/targets.npz is not there; put it "
        "there, or name it by `targets`"
    )


def test_a_run_of_other_options_is_told_before_the_extraction(workflow, capsys):
    assert main(["run", str(workflow), "--only", "first", "--dry-run"]) == 0
    capsys.readouterr()
    Path("runs/first").mkdir(parents=True)
    other = option_values(TrainOptions(core="m", size="paper", num_layers=4, lr=0.5), without=_MAY_DIFFER)
    write_run(Path("runs/first"), {"options": other, "finished": True, "model": {"encoder_dim": 112}})
    assert "lr (run 0.5, now 0.001)" in refused(workflow, capsys, code=1)


@pytest.mark.quick
def test_flags_become_keys_as_they_are_spelt_and_other_words_stay():
    message = "--num-heads 3 and --core-dim: see vfz cache convert --precision, x--lr, --again"
    assert in_keys(message, TrainOptions, ("num_heads", "core-dim")) == (
        "`num_heads` 3 and `core-dim`: see vfz cache convert --precision, x--lr, --again"
    )


def test_a_done_extraction_is_asked_itself(workflow, synthetic_cache):
    workflow.write_text(STAGES.replace("layers = [2, 3]", "layers = [3]"))
    with pytest.raises(UsageError, match=r"layer '2' is not in .*caches.*; it has 3"):
        check_workflow(read_workflow(workflow), synthetic_cache, on_this_machine=False)

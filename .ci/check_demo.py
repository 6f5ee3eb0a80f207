"""Fails unless a demo's summary.json shows what the demo promises."""

import json
import sys
from pathlib import Path

summary = json.loads(Path(sys.argv[1]).read_text())
bound = 3 * (summary["chance"] * (1 - summary["chance"]) / summary["num_test_clips"]) ** 0.5
checks = {
    "at least 60 test clips": summary["num_test_clips"] >= 60,
    "the order-blind probe is at chance": abs(summary["order_blind_accuracy"] - summary["chance"]) <= bound,
    "the identity core is at chance": abs(summary["identity_accuracy"] - summary["chance"]) <= bound,
    "gmmix is right on 90%": summary["gmmix_accuracy"] >= 0.9,
    "rvm_rnn is right on 90%": summary["rvm_rnn_accuracy"] >= 0.9,
    "an epoch from the cache is faster": summary["cached_epoch_speedup"] > 1,
}
for name, holds in checks.items():
    print(f"{'ok  ' if holds else 'FAIL'} {name}")
sys.exit(not all(checks.values()))

"""What is recorded of options: those that decide numbers, so that runs from before an option was there go on."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from vfz.pipeline.config import option
from vfz.temporal.training.experiment import _MAY_DIFFER, made_otherwise
from vfz.temporal.training.options import TrainOptions, option_values

pytestmark = pytest.mark.quick


@dataclass(frozen=True, kw_only=True)
class MoreOptions(TrainOptions):
    """As a later vfz may have them."""

    factors: tuple[int, ...] = option((1,), help="Added later.", added_later=True)


CACHE = SimpleNamespace(path="c", fingerprint="f", ledger_digest="l", recipe={}, provenance={}, label_set=None)


def test_an_option_that_was_added_later_is_recorded_only_where_it_is_not_its_default():
    assert option_values(MoreOptions(factors="1"), without=()) == option_values(TrainOptions(), without=())
    assert option_values(MoreOptions(factors="1,2"), without=("core",))["factors"] == [1, 2]


@pytest.mark.parametrize(
    ("then", "now", "differing"),
    [
        (TrainOptions(), MoreOptions(), []),
        (TrainOptions(), MoreOptions(factors="2"), ["factors (run None, now [2])"]),
        (MoreOptions(factors="2"), MoreOptions(), ["factors (run [2], now None)"]),
        (MoreOptions(factors="2"), TrainOptions(lr=1), ["lr (run 0.001, now 1.0)", "factors (run [2], now None)"]),
    ],
)
def test_a_run_goes_on_with_options_that_decide_the_same(then, now, differing):
    record = {
        "options": option_values(then, without=_MAY_DIFFER),
        "cache": {"fingerprint": CACHE.fingerprint, "ledger_digest": CACHE.ledger_digest},
    }
    assert made_otherwise(record, now, (CACHE,)) == differing

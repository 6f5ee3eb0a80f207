"""Readouts by name: every one keeps the contract, and what is asked for wrongly is refused."""

from pathlib import Path

import pytest
from contracts.readout_contract import ClipReadoutContract, ReadoutContract
from contracts.subclasses import subclasses_in

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.readouts import READOUTS, build_readout

pytestmark = pytest.mark.quick


def test_every_registered_readout_is_held_to_the_contract_in_every_protocol_it_has():
    contracts = {cls for cls in subclasses_in(Path(__file__).parent, ReadoutContract) if hasattr(cls, "task")}
    assert {cls.task for cls in contracts} == set(READOUTS.names())
    for cls in contracts:
        assert issubclass(cls, ClipReadoutContract) == ("clip" in READOUTS[cls.task].protocols)


def test_an_unknown_task_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown readout 'clasify'; did you mean classify"):
        build_readout("clasify", dim=8)


def test_an_unknown_protocol_is_refused_by_name():
    with pytest.raises(UnknownNameError, match="unknown protocol 'streming'; did you mean streaming"):
        build_readout("classify", dim=8, protocol="streming", num_classes=2)


def test_a_clip_readout_without_a_number_of_frames_is_refused():
    with pytest.raises(UsageError, match="clip protocol needs num_frames"):
        build_readout("classify", dim=8, protocol="clip", num_classes=2)


def test_readout_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UsageError, match="7 attention heads do not divide 24 channels"):
        build_readout("classify", dim=8, num_classes=2, readout_dim=24, num_heads=7)


def test_a_size_that_is_missing_is_refused_by_name():
    with pytest.raises(UsageError, match=r"the depth readout needs output_size; pass output_size=\.\.\."):
        build_readout("depth", dim=8)

"""Every registered readout keeps the contract; the two forms of the attention readout agree."""

from typing import ClassVar

import pytest
import torch
from contracts.readout_contract import ReadoutContract

from vfz.pipeline.errors import UnknownNameError, UsageError
from vfz.temporal.readouts import READOUTS, build_readout


class TestClassify(ReadoutContract):
    task = "classify"
    kwargs: ClassVar[dict] = {"num_classes": 3, "readout_dim": 24, "num_heads": 4, "num_frames": 5}
    answer_shape = (3,)
    # A bias on the keys adds the same to every score of a head, and softmax does not see it.
    zero_gradients = ("key_proj.bias",)


def test_every_registered_readout_is_held_to_the_contract():
    assert {cls.task for cls in ReadoutContract.__subclasses__()} == set(READOUTS.names())


def test_folding_the_projections_out_changes_nothing():
    torch.manual_seed(0)
    readout = build_readout("classify", dim=16, num_classes=3, readout_dim=24, num_heads=4)
    with torch.no_grad():
        readout.query.normal_()
        readout.key_proj.bias.normal_()
    tokens = torch.randn(5, 7, 16)
    folded, plain = readout._attend_folded(tokens), readout._attend(tokens)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-5)


def test_a_time_embedding_is_interpolated_linearly_to_another_length():
    from vfz.temporal.readouts.attention import _resize_time

    ramp = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 1, 3)
    assert torch.equal(_resize_time(ramp, 4), ramp)
    doubled = _resize_time(ramp, 8)
    assert doubled.shape == (1, 8, 1, 3)
    torch.testing.assert_close(doubled[0, 1:7, 0, 0], torch.arange(0.25, 3.0, 0.5))


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

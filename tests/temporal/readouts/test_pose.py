"""Readout `pose` keeps the contract."""

from typing import ClassVar

import pytest
from contracts.readout_contract import DIM, CoordinatesContract, ReadoutContract

pytestmark = pytest.mark.quick


class TestPose(CoordinatesContract, ReadoutContract):
    task = "pose"
    kwargs: ClassVar[dict] = {"readout_dim": 24, "mlp_hidden": 20}

    def shapes(self, batch_and_time, protocol):
        return {None: (*batch_and_time, 9)}


class TestPoseOfTokensAsWideAsTheReadout(TestPose):
    kwargs: ClassVar[dict] = {"readout_dim": DIM, "mlp_hidden": 20}

"""The files of `tests/golden/reference`: see the README.md there."""

import json
from pathlib import Path

from safetensors import safe_open

REFERENCE = Path(__file__).parents[1] / "golden" / "reference"
# Task and protocol of every file of a readout.
READOUTS = [
    ("classify", "streaming"),
    ("classify", "clip"),
    ("boxes", "streaming"),
    ("points", "streaming"),
    ("points", "clip"),
    ("depth", "streaming"),
    ("depth", "clip"),
    ("pose", "streaming"),
]


class Reference:
    """One reference file: `sizes`, and its tensors by group (`input`, `output`, `weights`, `grad`)."""

    def __init__(self, name):
        with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
            self.sizes = json.loads(file.metadata()["config"])
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def group(self, name, *, prefix=""):
        """Tensors of a group by name, without the group's name and `prefix`; those without the prefix are left out."""
        start = f"{name}.{prefix}"
        return {key.removeprefix(start): value for key, value in self._tensors.items() if key.startswith(start)}

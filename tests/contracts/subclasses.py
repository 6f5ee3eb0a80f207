"""Which test classes of a folder keep a contract."""

import runpy
from pathlib import Path


def subclasses_in(folder, contract):
    """The subclasses of a contract in the test files of a folder, whichever of the files pytest was asked to run."""
    found = [value for path in sorted(Path(folder).glob("test_*.py")) for value in runpy.run_path(str(path)).values()]
    return {value for value in found if isinstance(value, type) and issubclass(value, contract)} - {contract}

"""`python -m vfz.cli`: the same as the `vfz` script."""

from vfz.cli.main import run

run()

"""The most memory that a command and the processes it starts take."""

import subprocess
import time
from pathlib import Path

from helpers.processes import children_of

INTERVAL_SECONDS = 0.02


def peak_mb(command):
    """Runs a command to its end; the sum of the peaks of its processes, as the system keeps them (VmHWM).

    The peaks need not have been at the same moment, so this is never too little.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peaks = {}
    while process.poll() is None:
        for pid in _family(process.pid):
            peaks[pid] = max(peaks.get(pid, 0), _peak_kb(pid))
        time.sleep(INTERVAL_SECONDS)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return sum(peaks.values()) / 1000


def _family(pid):
    """A process and all under it that live and run a program of their own.

    One that was just forked still shows the memory of its parent, and its command line.
    """
    try:
        children = [child for child in children_of(pid) if _command_of(child) != _command_of(pid)]
    except (FileNotFoundError, ProcessLookupError):
        return [pid]
    return [pid, *(below for child in children for below in _family(child))]


def _command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _peak_kb(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)

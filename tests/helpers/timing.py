"""Timing several functions in turn."""

import statistics
import time


def seconds_of(*functions, rounds=7):
    """Median seconds of each function, measured in turn so that a slow moment of the machine meets all of them."""
    taken = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for times, function in zip(taken, functions, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]

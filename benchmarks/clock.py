"""Timing inside one process, for benchmarks without a peer process: ways in turn, medians over the rounds."""

import statistics
import time


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(ways, rounds=7):
    """{name: median seconds} of functions called in turn, after one call of each that is not counted."""
    for work in ways.values():
        work()
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work))
    return {name: statistics.median(times) for name, times in seconds.items()}

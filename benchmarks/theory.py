"""The table of `infalign frontier` at 20 KL points: five transforms, the optimum among them, best-of-4."""

import time

import numpy as np

from benchmarks.race import machine
from infalign_jax.core.frontier import frontier

TRANSFORMS = ("identity", "log", "exponential(10)", "exponential(-5)", "optimal")


def main():
    start = time.perf_counter()
    rows = frontier("best_of(4)", TRANSFORMS, np.geomspace(0.05, 3, 20).tolist(), None)
    seconds = time.perf_counter() - start
    print(f"{len(rows)} win rates in {seconds:.1f} s")
    return {"seconds": seconds, "win_rates": len(rows), "machine": machine()}

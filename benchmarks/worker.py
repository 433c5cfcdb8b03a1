"""One side of a race in a process of its own: builds the work, then does it once for every line on its input.

    PYTHON -m benchmarks.worker SIDE BENCHMARK SHAPE

It answers with one line of JSON: first what it is, then wall seconds and CPU seconds of each turn, and what else the
work returns.
"""

import importlib
import json
import os
import sys
import time


def main(side, benchmark, shape):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log

    def say(**words):
        print(json.dumps(words), file=answers, flush=True)

    from benchmarks.shapes import SHAPES

    module = importlib.import_module(f"benchmarks.side_{side}")
    work = module.build(benchmark, SHAPES[benchmark][shape])
    work()
    work()
    say(versions=module.versions())
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        more = work() or {}
        say(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, **more)
    os._exit(0)  # without the goodbyes of trainers that were stopped in the middle


if __name__ == "__main__":
    main(*sys.argv[1:])

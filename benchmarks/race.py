"""Sides in turn, A B C A B C, each in a process of its own: what counts is the ratio within a round.

    python -m benchmarks rollout|update|rl_step [--tunix PYTHON] [--trl PYTHON] [--shape NAME] [--rounds N] [--onto FILE] [--out FILE]

PYTHON is the interpreter of an environment that benchmarks/peers.sh has made. Without one only our own time and its
share of the machine's matmul limit are measured. With --onto the rounds are added to those of the same shape in FILE, and
its other shapes are kept, so that a machine has to be idle for minutes at a time only.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import flops, side_limit
from benchmarks.shapes import SHAPES


class Side:
    """A worker process; `turn()` has it do its work once."""

    def __init__(self, python, side, benchmark, shape):
        command = [python, "-m", "benchmarks.worker", side, benchmark, shape]
        pipe = subprocess.PIPE
        self.log = tempfile.NamedTemporaryFile("w", prefix=f"benchmark-{side}-", suffix=".log", delete=False)  # noqa: SIM115
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, cwd=os.getcwd())
        self.name = side
        self.versions = self.answer()["versions"]

    def answer(self):
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended; its messages are in {self.log.name}")
        return json.loads(line)

    def turn(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def race(benchmark, name, pythons, rounds):
    """Every side's turns and versions: {side: [{wall, cpu}, ...]}, {side: {package: version}}."""
    sides = [Side(python, side, benchmark, name) for side, python in pythons.items()]
    try:
        turns = {side.name: [] for side in sides}
        for _ in range(rounds):
            for side in sides:
                turns[side.name].append(side.turn())
                print(side.name, turns[side.name][-1], file=sys.stderr, flush=True)
    finally:
        for side in sides:
            side.close()
    return turns, {side.name: side.versions for side in sides}


def summary(benchmark, name, turns):
    """Medians, ratios to ours within each round with their spread, and the share of the matmul limit."""
    shape = SHAPES[benchmark][name]

    def median(side, clock):
        return statistics.median(turn[clock] for turn in turns[side])

    def ratios(side, clock):
        pairs = sorted(a[clock] / b[clock] for a, b in zip(turns[side], turns["ours"], strict=True))
        return {"median": statistics.median(pairs), "low": pairs[0], "high": pairs[-1]}

    limits = [side_limit.FLOPS / turn["wall"] for turn in turns["limit"]]
    needed = flops.count(benchmark, shape)
    reached = sorted(needed / a["wall"] / limit for a, limit in zip(turns["ours"], limits, strict=True))
    by_cpu = needed / median("ours", "cpu") / (side_limit.FLOPS / median("limit", "cpu"))
    peers = [side for side in turns if side not in ("ours", "limit")]
    return {
        "benchmark": benchmark, "shape": name, **shape._asdict(), "rounds": len(turns["ours"]),
        "seconds": {side: median(side, "wall") for side in turns if side != "limit"},
        "cpu_seconds": {side: median(side, "cpu") for side in turns if side != "limit"},
        "ratio": {side: ratios(side, "wall") for side in peers},
        "cpu_ratio": {side: ratios(side, "cpu") for side in peers},
        "tokens_per_second": shape.sequences * shape.tokens / median("ours", "wall"),
        "matmul_gflops": statistics.median(limits) / 1e9,
        "gflop": needed / 1e9,
        "gflop_prompt_repeated": flops.count(benchmark, shape, shared=False) / 1e9,
        "share_of_limit": statistics.median(reached), "share_of_limit_cpu": by_cpu,
    }  # fmt: skip


def line(row):
    """A row of the table that is printed."""
    cells = [f"{row['benchmark']} {row['shape']}", f"{row['seconds']['ours']:.2f} s"]
    for side, ratio in row["ratio"].items():
        cells.append(f"{side} {row['seconds'][side]:.2f} s")
        cells.append(f"{ratio['median']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})")
        cells.append(f"CPU time {row['cpu_ratio'][side]['median']:.2f}x")
    share = (
        f"{row['share_of_limit']:.0%} of {row['matmul_gflops']:.0f} GFLOP/s (CPU time: {row['share_of_limit_cpu']:.0%})"
    )
    return "| " + " | ".join([*cells, share]) + " |"


def main(benchmark, words):
    import argparse

    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {benchmark}")
    parser.add_argument("--tunix")
    parser.add_argument("--trl")
    parser.add_argument("--shape", choices=SHAPES[benchmark], action="append")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--onto")
    parser.add_argument("--out")
    chosen = parser.parse_args(words)
    pythons = {"limit": sys.executable, "ours": sys.executable, "tunix": chosen.tunix, "trl": chosen.trl}
    pythons = {side: python for side, python in pythons.items() if python}
    rows = {}
    if chosen.onto and os.path.exists(chosen.onto):
        with open(chosen.onto) as file:
            rows = {row["shape"]: row for row in json.load(file)["rows"]}
    for name in chosen.shape or SHAPES[benchmark]:
        turns, versions = race(benchmark, name, pythons, chosen.rounds or SHAPES[benchmark][name].rounds)
        before = rows.get(name, {"turns": {}, "measured": []})
        turns = {side: before["turns"].get(side, []) + turns[side] for side in turns}
        measured = [*before["measured"], machine()]
        rows[name] = {**summary(benchmark, name, turns), "turns": turns, "versions": versions, "measured": measured}
        print(line(rows[name]), flush=True)
    return {"rows": list(rows.values())}, chosen.out


def machine():
    """Where and when a measurement was made."""
    return {
        "cores": os.cpu_count(), "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(), "load": os.getloadavg()[0], "time": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip

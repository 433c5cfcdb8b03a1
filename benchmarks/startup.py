"""Fresh processes: importing, and a first step of sampling and alignment with a cold and a warm compilation cache."""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.race import machine

ROUNDS = 5
FIRST_STEP = """
from infalign_jax.training.compilation import use_cache
use_cache()
from benchmarks import side_ours, shapes
side_ours.rl_step(shapes.Shape(4, 16, 16, 4, rounds=1))()
"""
PROGRAMS = {
    "import numpy": "import numpy",
    "import jax": "import jax",
    "import infalign_jax": "import infalign_jax",
    "import infalign_jax and jax": "import infalign_jax, jax",
}


def seconds(program, folder):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": folder}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return time.perf_counter() - start


def main():
    with tempfile.TemporaryDirectory() as folder:
        times = {name: [] for name in PROGRAMS}
        for _ in range(ROUNDS):
            for name, program in PROGRAMS.items():
                times[name].append(seconds(program, folder))
        result = {name: statistics.median(each) for name, each in times.items()}
        result["first step, cold cache"] = seconds(FIRST_STEP, folder)
        result["first step, warm cache"] = statistics.median(seconds(FIRST_STEP, folder) for _ in range(3))
    for name, each in result.items():
        print(f"| {name} | {each:.2f} s |")
    ratio = result["import infalign_jax and jax"] / result["import jax"]
    print(f"importing infalign_jax and jax takes {ratio:.2f} times `import jax`")
    return {"seconds": result, "import_ratio": ratio, "machine": machine()}

"""A million rewards against the tables of 10,000 prompts, 100 reference rewards each: inside jit, on the host, numpy, scipy."""

import jax
import numpy as np
from scipy import stats

from benchmarks.clock import in_turn
from benchmarks.race import machine
from infalign_jax.core.calibration import calibrate

PROMPTS, REWARDS, K = 10_000, 100, 100


def numpy_loop(rewards_PR, table_PK):
    """What a script would write: two binary searches a prompt."""
    u_PR = np.empty_like(rewards_PR)
    for u_R, rewards_R, table_K in zip(u_PR, rewards_PR, table_PK, strict=True):
        u_R[:] = (table_K.searchsorted(rewards_R, "left") + table_K.searchsorted(rewards_R, "right")) / (2 * K)
    return u_PR


def scipy_loop(rewards_PR, table_PK):
    rows = zip(rewards_PR, table_PK, strict=True)
    return np.stack([stats.percentileofscore(table, rewards, "mean") / 100 for rewards, table in rows])


def main():
    random = np.random.default_rng(0)
    rewards_PR = random.normal(size=(PROMPTS, REWARDS)).astype(np.float32)
    table_PK = np.sort(random.normal(size=(PROMPTS, K)), 1).astype(np.float32)
    on_device = jax.device_put((rewards_PR, table_PK))
    jitted = jax.jit(lambda rewards, table: calibrate(rewards, table, is_sorted=True))
    ways = {
        "inside jit": lambda: jitted(*on_device).block_until_ready(),
        "host": lambda: np.asarray(calibrate(rewards_PR, table_PK, is_sorted=True)),
        "numpy loop": lambda: numpy_loop(rewards_PR, table_PK),
    }
    np.testing.assert_allclose(ways["host"](), ways["numpy loop"](), rtol=1e-6)
    seconds = in_turn(ways)
    few = slice(0, PROMPTS // 20)
    seconds["scipy loop"] = 20 * in_turn({"": lambda: scipy_loop(rewards_PR[few], table_PK[few])}, rounds=3)[""]
    rates = {name: rewards_PR.size / time / 1e6 for name, time in seconds.items()}
    memory = jitted.lower(*on_device).compile().memory_analysis()
    for name, rate in rates.items():
        print(
            f"| {name} | {rate:.1f} million rewards/s | {seconds['numpy loop'] / seconds[name]:.2f}x the numpy loop |"
        )
    temporaries = memory.temp_size_in_bytes / (4 * PROMPTS * K)
    print(f"temporaries inside jit: {temporaries:.2f} times the table")
    return {"million_rewards_per_second": rates, "temporaries_in_tables": temporaries, "machine": machine()}

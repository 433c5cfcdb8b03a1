"""CPU-seconds of rollouts whose lengths are geometric, with the plain sampler and with rollouts let go of as they end.

    python benchmarks/retire.py [PROMPTS ROLLOUTS PROMPT_SLOTS MAX_TOKENS MEAN_LENGTH [DEVICES]]

A random model of 5 million parameters finds all tokens about equally likely: with one in MEAN_LENGTH of them an end mark,
lengths are geometric. Both must draw the same tokens. Steps times rows are counted for 300 draws of such lengths: of what is
built, and of what is not, refilled slots (a prompt's rollouts drawn in R/4 slots, each refilled as soon as it is free) and
smaller rectangles of prompts and rollouts. With several devices (the CPU's own) the prompts are split over them.
"""

import heapq
import resource
import statistics
import sys

import jax
import numpy as np

from infalign_jax.models import transformer
from infalign_jax.models.config import TransformerConfig
from infalign_jax.sampling import retire, sampler
from infalign_jax.training import mesh as meshes

B, R, S, C, MEAN, DEVICES = map(int, [*sys.argv[1:], "1"][:6]) if len(sys.argv) > 1 else (16, 8, 64, 128, 32, 1)
CONFIG = TransformerConfig(
    vocab_size=4096, num_layers=6, embed_dim=192, num_heads=6, num_kv_heads=2, head_dim=32, mlp_dim=512
)


def refill_row_steps(lengths_BR, slots):
    """Steps until the last prompt is done, times the rows, when each of its slots takes the next rollout at once."""
    last = 0
    for lengths in lengths_BR:
        free = [0] * slots
        for length in lengths:
            heapq.heappush(free, heapq.heappop(free) + int(length))
        last = max(last, *free)
    return last * slots * len(lengths_BR)


def let_go_row_steps(lengths_BR, prompts_too, programs):
    """Steps times rows when rollouts are let go of, or prompts and rollouts; adds (slots, prompts, rollouts) to `programs`."""
    (b, r), step, total = lengths_BR.shape, 0, 0
    for end in [*range(retire.STRETCH, C, retire.STRETCH), C]:
        programs.add((1 << (end - 1).bit_length(), b, r))
        last = min(end, lengths_BR.max())
        total, step = total + (last - step) * b * r, last
        live_BR = lengths_BR > step
        if not live_BR.any():
            break
        smaller = retire.halved(b, live_BR.any(1).sum()) if prompts_too else b, retire.halved(r, live_BR.sum(1).max())
        if np.prod(smaller) < b * r > retire.FEW:
            b, r = smaller
    return total


def count(draws=300):
    """Prints row-steps of each way as parts of the plain sampler's, and the programs that they compile, for drawn lengths."""
    rng, plain = np.random.default_rng(0), 0
    totals, programs = {"refilled slots": 0, "rollouts": 0, "prompts and rollouts": 0}, {False: set(), True: set()}
    for _ in range(draws):
        lengths_BR = np.minimum(rng.geometric(1 / MEAN, (B, R)), C)
        plain += lengths_BR.max() * B * R
        totals["refilled slots"] += refill_row_steps(lengths_BR, max(R // 4, 1))
        totals["rollouts"] += let_go_row_steps(lengths_BR, False, programs[False])
        totals["prompts and rollouts"] += let_go_row_steps(lengths_BR, True, programs[True])
    print("row-steps:", ", ".join(f"{name} {total / plain:.2f}" for name, total in totals.items()))
    print(f"programs: rollouts {len(programs[False])}, prompts and rollouts {len(programs[True])}")


def main():
    count()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = meshes.make_mesh({"data": DEVICES, "fsdp": 1, "tensor": 1})
    variables = jax.device_put(transformer.init(CONFIG, jax.random.key(0)), meshes.replicated(mesh))
    prompts = jax.random.randint(jax.random.key(1), (B, S), 0, CONFIG.vocab_size)
    batch = meshes.put_batch(mesh, (prompts, np.full(B, S, np.int32), np.arange(B, dtype=np.int32)))
    options = dict(rollouts=R, max_tokens=C, eos_ids=tuple(range(round(CONFIG.vocab_size / MEAN))))

    def run(function, seed):
        before = resource.getrusage(resource.RUSAGE_SELF)
        out = jax.block_until_ready(function(CONFIG, variables, *batch, jax.random.key(seed), **options))
        after = resource.getrusage(resource.RUSAGE_SELF)
        return out, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    seconds, compiling = {sampler.sample: [], retire.sample: []}, []
    for again in range(2):  # the first time compiles
        for seed in range(6):
            (plain, one), (retired, two) = (run(function, seed) for function in seconds)
            np.testing.assert_array_equal(plain.tokens_BRC, retired.tokens_BRC)
            if again:
                seconds[sampler.sample].append(one)
                seconds[retire.sample].append(two)
            else:
                compiling.append((one, two))
    plain, retiring = map(statistics.median, seconds.values())
    print(f"CPU seconds: plain {plain:.2f}, retiring {retiring:.2f}")
    print("with compiling, six calls: plain {:.1f}, retiring {:.1f}".format(*np.sum(compiling, axis=0)))


if __name__ == "__main__":
    main()

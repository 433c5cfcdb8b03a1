"""`python -m benchmarks NAME [FLAGS]`: prints a table; `--out FILE` keeps the numbers as JSON.

rollout, update, rl_step   beside Tunix and TRL (--tunix PYTHON --trl PYTHON), and beside the machine's matmul limit
memory                     temporaries and time of loss + gradient at a vocabulary of 262,144
calibration                a million rewards against 10,000 tables of 100, inside jit and on the host
theory                     a frontier of 20 KL points
startup                    `import infalign_jax`; a first step with a cold and a warm compilation cache
"""

import importlib
import json
import pathlib
import sys

NAMES = ("rollout", "update", "rl_step", "memory", "calibration", "theory", "startup")


def main(words):
    if not words or words[0] not in NAMES:
        print(__doc__)
        return int(not words or words[0] not in ("-h", "--help"))
    name, *rest = words
    if name in ("rollout", "update", "rl_step"):
        from benchmarks import race

        result, out = race.main(name, rest)
    else:
        out = rest[rest.index("--out") + 1] if "--out" in rest else None
        result = importlib.import_module(f"benchmarks.{name}").main()
    if out:
        pathlib.Path(out).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

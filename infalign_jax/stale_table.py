"""`python -m infalign_jax.stale_table`: what it costs to align a policy with the calibration table of another one."""

import numpy as np

from infalign_jax import flags

PAGE = """python -m infalign_jax.stale_table --policy RUN --tables RUN[,RUN...] [--kl X]

  Win rates of the best policies at a KL when the quantiles come from the policy's own table, and from tables of other
  policies of the same prompts: stage calibrate's, nothing is trained. Then the same in closed form for a reference that has
  moved to the optimum of an alignment, while its table was left as it was.

  --policy RUN   a workdir whose stage calibrate is done, with several hundred held-out rollouts: give it
                 --config.calibrate.held_out=512. They are the responses; its table is the right one
  --tables RUNS  workdirs of other reference policies, same data and reward, separated by commas
  --kl X         nats per sequence (0.5)

  infalign calibrate --config quickstart --workdir runs/right --config.calibrate.held_out=512
  infalign calibrate --config quickstart --workdir runs/early --config.sft.steps=50
"""
COMPARED = (
    ("identity", "standard"),
    ("exponential(10)", "best_of(4)"),
    ("optimal(best_of(4))", "best_of(4)"),
    ("optimal(worst_of(4))", "worst_of(4)"),
)
MOVES = (0.1, 0.25, 0.5, 1.0)  # nats that the reference has moved


def main(words):
    """The command: prints both tables in Markdown."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    legal = {"policy": (None, str), "tables": (None, str), "kl": (0.5, float)}
    options = flags.parse("python -m infalign_jax.stale_table", words, legal)
    if not 0 < options["kl"] < 40:
        raise ValueError(f"--kl is {options['kl']:g}; it must be above 0 and below 40")
    from infalign_jax.reporting.study_tables import markdown

    header = ["table", "mean error of u", *(f"{method} at {name}" for method, name in COMPARED)]
    print(markdown(header, measured(options["policy"], options["tables"].split(","), options["kl"])))
    print()
    print(markdown(["the reference has moved", *header[2:]], closed_form(options["kl"])))


def measured(policy, others, kl):
    """Rows of text: the policy's own table, then the others, with paired differences and their 95 % intervals over prompts."""
    from infalign_jax.core import bootstrap
    from infalign_jax.core.stale_table import tilted
    from infalign_jax.stages.calibrate import read_table

    right, prompts = read_table(f"{policy}/calibrate")
    rows, first = [], []
    for run in (policy, *others):
        table, texts = read_table(f"{run}/calibrate")
        if texts != prompts:
            raise ValueError(f"{run}: its table is of other prompts than that of {policy}; use the same data and seed")
        found = [tilted(right.held_out_PH, table.rewards_PK, method, kl, [name]) for method, name in COMPARED]
        wins = [tilt.win_rates[name] for tilt, (_, name) in zip(found, COMPARED, strict=True)]
        first = first or wins
        cells = [f"{np.mean(win):.4f}" for win in wins]
        if wins is not first:
            pairs = [bootstrap.mean_interval(win - own) for win, own in zip(wins, first, strict=True)]
            cells = [
                f"{cell} ({d:+.4f} [{low:+.4f}, {high:+.4f}])"
                for cell, (d, low, high) in zip(cells, pairs, strict=True)
            ]
        rows.append([f"of {run}", f"{found[0].calibration_error:.3f}", *cells])
    return rows


def closed_form(kl):
    """Rows of text: win rates with exact calibration by the old reference, after it has moved along identity's optimum."""
    from infalign_jax.core.stale_table import moved_win_rate

    rows, own = [], []
    for moved_kl in MOVES:
        pairs = [moved_win_rate(name, method, kl=kl, moved="identity", moved_kl=moved_kl) for method, name in COMPARED]
        own = ["not at all", *(f"{right:.4f}" for right, _ in pairs)]
        rows.append([f"by {moved_kl:g} nats", *(f"{stale:.4f} ({stale - right:+.4f})" for right, stale in pairs)])
    return [own, *rows]


if __name__ == "__main__":
    from infalign_jax.main import cli

    cli(main)

"""`infalign frontier`: what each transform can win at each KL, and the optimum, from theory alone."""

import csv
import json
import pathlib

from infalign_jax import flags
from infalign_jax.core.finite_table import MOST_ROLLOUTS

PAGE = """infalign frontier [--procedure NAME] [flags]

  Win rate against KL of every transform, and of the best transform there is, for one inference-time procedure: what to
  expect before training anything, and which transform, KL and number of rollouts to choose.

  --procedure NAME     "best_of(8)" (the default "best_of(4)"), "worst_of(4)", standard, "order_statistic(2,3)",
                       "best_of_poisson(4)", "randomized(0.5*best_of(4),0.5*standard)",
                       "average_of(standard,best_of(8))" where N is not known yet
  --transforms NAMES   separated by commas ("identity,log,exponential(10),exponential(-5),optimal")
  --kls NUMBERS        nats per sequence, separated by commas ("0.1,0.25,0.5,1,2")
  --rollouts K         calibration tables of K rollouts instead of exact calibration (0, exact)
  --out FILE           also write the table as .csv or .json, or a figure as .png, .svg or .pdf; several with commas

  A dash means that a transform cannot reach the KL. Under the table stands what is known of the optimum: certified is a proof
  that no policy whatever wins more.

  infalign frontier --procedure "best_of(8)" --kls 0.5,1 --rollouts 64
"""
_FLAGS = {  # name -> (default, how its text is read)
    "procedure": ("best_of(4)", str), "transforms": ("identity,log,exponential(10),exponential(-5),optimal", str),
    "kls": ("0.1,0.25,0.5,1,2", str), "rollouts": (0, int), "out": ("", str),
}  # fmt: skip
FIGURES, TABLES = (".png", ".svg", ".pdf"), (".csv", ".json")
KINDS = {
    "certified": "certified: no policy wins more by {gap:.0e}",
    "unique": "proved to be the only stationary point",
    "local": "a stationary point, not proved to be the best there is",
}


def main(words):
    """The command: prints the table, and writes the files asked for."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    options = flags.parse("infalign frontier", words, _FLAGS)
    kls, outs = _numbers(options["kls"]), [out.strip() for out in options["out"].split(",") if out.strip()]
    if not 0 <= options["rollouts"] <= MOST_ROLLOUTS:
        raise ValueError(
            f"--rollouts is {options['rollouts']}; it must be 1 to {MOST_ROLLOUTS}, or 0 for exact calibration"
        )
    for out in outs:
        if pathlib.Path(out).suffix not in FIGURES + TABLES:
            raise ValueError(f"--out has {out!r}; it must end with {', '.join(FIGURES + TABLES)}")

    from infalign_jax.core.frontier import figure, frontier

    rows = frontier(options["procedure"], split_names(options["transforms"]), kls, options["rollouts"] or None)
    print("\n".join(lines(rows)))
    for out in outs:
        suffix = pathlib.Path(out).suffix
        if suffix in FIGURES:
            figure(rows).savefig(out, dpi=150)
        elif suffix == ".json":
            pathlib.Path(out).write_text(json.dumps(rows, indent=1) + "\n")
        else:
            with open(out, "w", newline="") as file:
                table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
                table.writeheader()
                table.writerows(rows)


def lines(rows):
    """The table as text: transforms down, KLs across, win rates in the cells; then what is known of the optimum.

    Args:
      rows: of `frontier`, for one procedure.
    """
    from infalign_jax.core.optimal import optimal_transform
    from infalign_jax.reporting.tables import DASH, align

    kls = list(dict.fromkeys(row["kl"] for row in rows))
    cells = {(row["transform"], row["kl"]): row["win_rate"] for row in rows}
    names = list(dict.fromkeys(row["transform"] for row in rows))
    table = [[name, *(DASH if cells[name, kl] is None else f"{cells[name, kl]:.4f}" for kl in kls)] for name in names]
    procedure, samples = rows[0]["procedure"], rows[0]["calibration_samples"]
    how = f"tables of {samples} rollouts" if samples else "exact calibration"
    text = [f"win rate of {procedure} over the same of the reference, {how}", ""]
    text.append(align(["transform", *(f"KL {kl:g}" for kl in kls)], table))
    if "optimal" in names:
        best = optimal_transform(procedure, kl=kls[-1], calibration_samples=samples)
        text += ["", f"optimal at KL {kls[-1]:g}: " + KINDS[best.kind].format(gap=best.gap)]
    return text


def split_names(text):
    """The names between the commas that stand outside brackets: 'log,optimal' but also 'optimal(randomized(a,b))'.

    Examples:
      >>> split_names("log, average_of(best_of(1),best_of(2))")
      ['log', 'average_of(best_of(1),best_of(2))']
    """
    names, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            names.append("")
        else:
            names[-1] += letter
    names = [name.strip() for name in names]
    if not all(names):
        raise ValueError(f"--transforms is {text!r}; it must be names separated by commas")
    return names


def _numbers(text):
    try:
        kls = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--kls is {text!r}; it must be numbers separated by commas") from None
    if not all(0 < kl < float("inf") for kl in kls):
        raise ValueError(f"--kls is {text!r}; every KL must be a positive number of nats")
    return sorted(set(kls))

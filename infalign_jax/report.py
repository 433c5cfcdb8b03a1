"""`infalign report DIR...`: every table and figure of a study, from the results of its cells alone."""

import functools
import itertools
import pathlib

from infalign_jax.core import optimal, procedures, theory
from infalign_jax.reporting import picture, study_figures, study_results, style
from infalign_jax.training import workdir

PAGE = """infalign report DIR [DIR ...]

  Rebuilds tables and figures of a study from the results in DIR/cells: win rates at equal KL with intervals over prompts
  and seeds, paired differences, theoretical ceilings, the robustness matrix, the reward-hacking curve, cost, and every
  run with its state. Several DIRs are read as one study. Writes DIR/report/ of the first: report.md, *.png, *.json.
"""
CEILINGS = ("standard", "best_of", "worst_of")  # procedures that theory has a certified or unique optimum for


def main(words):
    """The command."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    if not words or any(word.startswith("-") for word in words):
        raise ValueError("report needs the workdirs of a study and no flags: infalign report DIR [DIR ...]")
    print(f"report: {build(words)}")


def build(folders):
    """Writes the report of the cells in `folders` under the first one; returns the path of report.md.

    Raises:
      ValueError: there are no results, or a file is damaged; names it.
    """
    cells = study_results.read(folders)
    found = study_results.groups(cells)
    if not found:
        failed = "; ".join(f"{cell['name']}: {cell.get('error', 'a search for a learning rate')}" for cell in cells[:3])
        raise ValueError(f"none of the {len(cells)} cells is finished ({failed})")
    rows = study_results.win_rates(found)
    head = "gold" if any(row["judge"] == "gold" for row in rows) else "train"
    kl = headline_kl(rows)
    data = {
        "win_rates": rows,
        "differences": study_results.differences(found),
        "ceilings": ceilings(found, rows),
        "robustness": study_results.losses(rows, kl),
        "costs": study_results.costs(found),
        "runs": [
            {key: value for key, value in cell.items() if key not in ("kl_P", "win_rates", "groups")} for cell in cells
        ],
    }
    folder = pathlib.Path(folders[0]) / "report"
    for name, value in data.items():
        workdir.write_json(folder / f"{name}.json", value)
    pictures = study_figures.pictures(rows, data["robustness"], head)
    picture.save(pictures, folder)
    path = folder / "report.md"
    path.write_text("\n\n".join(_page(data, pictures, head, kl)) + "\n", encoding="utf-8")
    return path


def headline_kl(rows):
    """The KL of the matrix: the one nearest 0.5 nats among those that most methods were trained for."""
    counts = {}
    for row in rows:
        counts.setdefault(row["kl"], set()).add((row["task"], row["method"]))
    most = max(map(len, counts.values()))
    return min((kl for kl, methods in counts.items() if len(methods) == most), key=lambda kl: abs(kl - 0.5))


def ceilings(found, rows):
    """Measured win rates beside theory: identity's, the optimum's, and which share of the gain between them was won.

    Theory is of exact calibration on continuous rewards and, as `_table`, of tables of K rollouts; under the training reward
    only. The share is (measured - identity in theory) / (optimum - identity in theory), both for tables of K.
    """
    made = []
    for row in rows:
        procedure = row["procedure"]
        if row["judge"] != "train" or procedure.partition("(")[0] not in CEILINGS[1:]:
            continue
        K = found[row["task"], row["method"], row["kl"]].cells[0]["calibration_rollouts"]
        exact, table = _theory(procedure, row["kl"], None), _theory(procedure, row["kl"], K)
        gain = table[1] - table[0]
        keys = ("task", "method", "kl", "procedure", "win_rate", "low", "high")
        told = dict(zip(("identity", "optimum", "identity_table", "optimum_table"), (*exact, *table), strict=True))
        share = (row["win_rate"] - table[0]) / gain if gain > 0.002 else None
        made.append({**{key: row[key] for key in keys}, **told, "share_of_gain": share})
    return made


@functools.lru_cache(maxsize=512)
def _theory(procedure, kl, calibration_samples):
    """(win rate of identity, win rate of the optimum) at a KL."""
    law = procedures.from_name(procedure)
    phi, beta = optimal.resolve("identity", kl=kl, calibration_samples=calibration_samples)
    own = theory.win_rate(law, phi, beta, calibration_samples)
    best = optimal.optimal_transform(law, kl=kl, calibration_samples=calibration_samples).win_rate
    return float(own), float(best)


def _page(data, pictures, head, kl):
    """The blocks of report.md."""
    yield "# Report of a study"
    yield (
        "Win rates are of a procedure applied to the policy against the same procedure applied to the reference, at equal KL "
        "(nats per sequence); brackets hold 95 % intervals over prompts and seeds of the whole pipeline. `*` marks methods "
        "of which a seed missed its KL by more than 5 %."
    )
    for task in dict.fromkeys(row["task"] for row in data["win_rates"]):
        yield f"## {task}"
        mine = {name: [row for row in rows if row.get("task") == task] for name, rows in data.items()}
        for made in pictures:
            if made.name.endswith(f"_{task}"):
                yield f"![{made.title}]({made.name}.png)\n\n{made.caption}"
        for judge, level in itertools.product(
            *(dict.fromkeys(r[k] for r in mine["win_rates"]) for k in ("judge", "kl"))
        ):
            rows = [row for row in mine["win_rates"] if (row["judge"], row["kl"]) == (judge, level)]
            yield f"### {task}: win rates at KL {level:g}, {judge} reward\n\n{_win_rate_table(rows)}"
        yield f"### {task}: paired differences, {head} reward\n\n{_difference_table(mine['differences'], head)}"
        yield f"### {task}: against theory, training reward\n\n{_ceiling_table(mine['ceilings'])}"
        lost = [row for row in mine["robustness"] if row["judge"] == head]
        yield f"### {task}: win rate lost to the best method at KL {kl:g}, {head} reward\n\n{_loss_table(lost)}"
        yield f"### {task}: cost\n\n{_cost_table(mine['costs'])}"
    yield f"## All runs\n\n{_run_table(data['runs'])}"


def markdown(header, rows):
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _pivot(rows, cell):
    """Methods down, procedures across."""
    names = list(dict.fromkeys(row["procedure"] for row in rows))
    found = {(row["method"], row["procedure"]): row for row in rows}
    return names, [
        [method, *(cell(found[method, name]) if (method, name) in found else "–" for name in names)]
        for method in style.order(row["method"] for row in rows)
    ]


def _win_rate_table(rows):
    names, table = _pivot(rows, lambda row: f"{row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    first = {row["method"]: row for row in rows}
    marked = [
        [f"{m}{'*' if first[m]['off_target'] else ''}", f"{first[m]['kl_measured']:.3f}", first[m]["seeds"], *cells]
        for m, *cells in table
    ]
    return markdown(["method", "KL", "seeds", *names], marked)


def _difference_table(rows, judge):
    rows = [row for row in rows if row["judge"] == judge and row["baseline"] in ("identity", "best uncalibrated")]
    table = [
        [
            f"{row['method']} − {row['baseline']}" + (f" ({row['is']})" if "is" in row else ""),
            f"{row['kl']:g}",
            row["procedure"],
            row["seeds"],
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
        ]
        for row in rows
    ]
    return markdown(["difference", "KL", "procedure", "seeds", "value"], table)


def _ceiling_table(rows):
    table = [
        [
            row["method"],
            f"{row['kl']:g}",
            row["procedure"],
            f"{row['win_rate']:.3f}",
            f"{row['identity']:.3f} ({row['identity_table']:.3f})",
            f"{row['optimum']:.3f} ({row['optimum_table']:.3f})",
            "–" if row["share_of_gain"] is None else f"{100 * row['share_of_gain']:.0f} %",
        ]
        for row in rows
    ]
    header = [
        "method",
        "KL",
        "procedure",
        "measured",
        "identity, theory (K)",
        "optimum, theory (K)",
        "share of the gain",
    ]
    return markdown(header, table)


def _loss_table(rows):
    names, table = _pivot(rows, lambda row: f"{row['loss']:.3f}")
    return markdown(["method", *names], table)


def _cost_table(rows):
    table = [
        [
            row["method"],
            row["cells"],
            f"{row['calibration_rollouts']:.0f}",
            f"{row['training_rollouts']:.0f}",
            f"{row['calibration_seconds']:.1f}",
            f"{row['training_seconds']:.1f}",
            f"{100 * row['calibration_share']:.0f} %",
            row["device"],
        ]
        for row in rows
    ]
    header = [
        "method",
        "cells",
        "rollouts, table",
        "rollouts, training",
        "s, calibrate",
        "s, train",
        "calibration",
        "device",
    ]
    return markdown(header, table)


def _run_table(rows):
    table = [
        [
            row["name"],
            row["status"],
            f"{row['kl_measured']:.3f}" if row["status"] == "done" else "–",
            f"{row['learning_rate']:g}" if row["status"] == "done" else "–",
            f"{row['seconds']['cell']:.0f}" if row["status"] == "done" else row["error"].replace("|", "/"),
        ]
        for row in sorted(rows, key=lambda row: row["name"])
    ]
    return markdown(["run", "status", "KL", "learning rate", "seconds, or what failed"], table)

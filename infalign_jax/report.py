"""`infalign report DIR...`: every table and figure of a study, from the results of its cells alone."""

import functools
import itertools
import pathlib

from absl import logging

from infalign_jax.core import optimal, procedures, theory
from infalign_jax.reporting import picture, study_figures, study_results, study_tables
from infalign_jax.stages import methods
from infalign_jax.training import workdir

PAGE = """infalign report DIR [DIR ...]

  Rebuilds tables and figures of a study from the results in DIR/cells: win rates at equal KL with intervals over prompts
  and seeds, paired differences, theoretical ceilings, the robustness matrix, the reward-hacking curve, cost, and every
  run with its state. Several DIRs are read as one study. Writes DIR/report/ of the first: report.md, *.png, *.json.
  The report of a single run needs no command: evaluate/report.html in its workdir.
"""
CEILINGS = ("standard", "best_of", "worst_of")  # procedures whose optimum is certified or unique


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
        "differences": with_ceilings(study_results.differences(found), found, rows),
        "ceilings": ceilings(found, rows),
        "robustness": study_results.losses(rows, kl),
        "rewards": study_results.mean_rewards(found),
        "costs": study_results.costs(found),
        "runs": [
            {key: value for key, value in cell.items() if key not in ("kl_P", "win_rates", "groups")} for cell in cells
        ],
    }
    folder = pathlib.Path(folders[0]) / "report"
    for name, value in data.items():
        workdir.write_json(folder / f"{name}.json", value)
    pictures = study_figures.pictures(rows, data["robustness"], data["ceilings"], head, kl)
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
    only. The share is (measured - identity in theory) / (optimum - identity in theory), both for tables of K. Rows at a KL
    that theory refuses are left out.
    """
    made = []
    for row in rows:
        procedure = row["procedure"]
        if row["judge"] != "train" or procedure.partition("(")[0] not in CEILINGS[1:]:
            continue
        K = found[row["task"], row["method"], row["kl"]].cells[0]["calibration_rollouts"]
        exact, table = _theory(procedure, row["kl"], None), _theory(procedure, row["kl"], K)
        if exact is None or table is None:
            continue
        gain = table[1] - table[0]
        keys = ("task", "method", "kl", "procedure", "win_rate", "low", "high")
        told = dict(zip(("identity", "optimum", "identity_table", "optimum_table"), (*exact, *table), strict=True))
        for name in ("win_rate", "low", "high"):
            end = name.replace("win_rate", "of_gain")
            told[f"share_{end}"] = (row[name] - table[0]) / gain if gain > 0.002 else None
        made.append({**{key: row[key] for key in keys}, **told})
    return made


def with_ceilings(differences, found, rows):
    """The differences, each with the most that theory leaves for it: certified optimum minus the rival, tables of K.

    The rival is taken as theory has it where it is a transform, else as measured: what no method could exceed if policies
    followed their tilts exactly. Under the training reward only; elsewhere None.
    """
    measured = {(r["task"], r["method"], r["kl"], r["judge"], r["procedure"]): r["win_rate"] for r in rows}
    made = []
    for row in differences:
        head, ceiling = row["procedure"].partition("(")[0], None
        if row["judge"] == "train" and head in CEILINGS:
            K = found[row["task"], row["method"], row["kl"]].cells[0]["calibration_rollouts"]
            rival = row.get("is", row["baseline"])
            own = _own_theory(rival, row["procedure"], row["kl"], K)
            if own is None:
                own = measured[row["task"], rival, row["kl"], "train", row["procedure"]]
            both = _theory(row["procedure"], row["kl"], K)
            ceiling = both and both[1] - own
        made.append({**row, "ceiling": ceiling})
    return made


@functools.lru_cache(maxsize=512)
def _own_theory(method, procedure, kl, calibration_samples):
    """Win rate of the exact optimum of a transform; None for the other methods, and where theory refuses."""
    if methods.is_baseline(method):
        return None
    law = procedures.from_name(procedure)
    try:
        phi, beta = optimal.resolve(method, kl=kl, calibration_samples=calibration_samples)
        return float(theory.win_rate(law, phi, beta, calibration_samples))
    except ValueError:
        return None  # `_theory` says so


@functools.lru_cache(maxsize=512)
def _theory(procedure, kl, calibration_samples):
    """(win rate of identity, win rate of the optimum) at a KL; None, said once, where theory refuses: near log K nats."""
    law = procedures.from_name(procedure)
    try:
        phi, beta = optimal.resolve("identity", kl=kl, calibration_samples=calibration_samples)
        own = theory.win_rate(law, phi, beta, calibration_samples)
        best = optimal.optimal_transform(law, kl=kl, calibration_samples=calibration_samples).win_rate
    except ValueError as error:
        logging.warning("the report has no theory for %s at a KL of %g: %s", procedure, kl, error)
        return None
    return float(own), float(best)


def _without_theory(mine):
    """The procedures and KLs whose rows `ceilings` left out, in words."""
    told = {(row["procedure"], row["kl"]) for row in mine["ceilings"]}
    asked = dict.fromkeys((row["procedure"], row["kl"]) for row in mine["win_rates"])
    asked = [pair for pair in asked if pair[0].partition("(")[0] in CEILINGS[1:] and pair not in told]
    return ", ".join(f"{procedure} at KL {kl:g}" for procedure, kl in asked)


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
        told = study_tables.target_table(mine["ceilings"], mine["differences"])
        yield f"### {task}: transforms for the procedure they are made for, training reward\n\n{told}"
        judges = ("train", "gold") if study_figures.judges_differ(mine["win_rates"]) else (head,)
        for judge, level in itertools.product(judges, dict.fromkeys(row["kl"] for row in mine["win_rates"])):
            rows = [row for row in mine["win_rates"] if (row["judge"], row["kl"]) == (judge, level)]
            yield f"### {task}: win rates at KL {level:g}, {judge} reward\n\n{study_tables.win_rate_table(rows)}"
        yield f"### {task}: paired differences, {head} reward\n\n{study_tables.difference_table(mine['differences'], head)}"
        yield f"### {task}: against theory, training reward\n\n{study_tables.ceiling_table(mine['ceilings'])}"
        if left_out := _without_theory(mine):
            yield f"Theory could not be solved, and is left out, for {left_out}."
        lost = [row for row in mine["robustness"] if row["judge"] == head]
        yield f"### {task}: win rate lost to the best method at KL {kl:g}, {head} reward\n\n{study_tables.loss_table(lost)}"
        if mine["rewards"]:
            yield f"### {task}: mean rewards, the reference's in brackets\n\n{study_tables.reward_table(mine['rewards'])}"
        yield f"### {task}: cost\n\n{study_tables.cost_table(mine['costs'])}"
    yield f"## All runs\n\n{study_tables.run_table(data['runs'])}"

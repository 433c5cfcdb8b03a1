"""The cells of a study, read back and pooled: win rates with intervals over prompts and seeds, and paired differences."""

import itertools
import json
import pathlib
from typing import NamedTuple

import numpy as np

from infalign_jax.core import bootstrap

UNCALIBRATED = ("raw", "raw_group_std", "log_sigmoid", "ppo", "max_at_k", "dpo")
OFF_TARGET = 0.05  # relative error of a measured KL from which a cell is marked


class Group(NamedTuple):
    """The finished cells of one task, method and KL, one a seed.

    wins: {judge: {procedure: [S, P]}}.
    kl_S: measured KL, nats per sequence.
    cells: the results themselves.
    """

    task: str
    method: str
    kl: float
    seeds: tuple
    kl_S: np.ndarray
    wins: dict
    cells: list


def read(folders):
    """Every cell's result under `DIR/cells` of the folders, by name.

    Raises:
      ValueError: a folder has none, a file is not JSON or no cell, or two folders hold a cell of the same name.
    """
    cells = {}
    for folder in map(pathlib.Path, folders):
        paths = sorted((folder / "cells").glob("*.json"))
        if not paths:
            if (page := folder / "evaluate" / "report.html").exists():
                raise ValueError(f"{folder} is the workdir of one run, not of a study; its report is {page}")
            raise ValueError(f"{folder} holds no results: run `infalign study --workdir {folder}` first")
        for path in paths:
            try:
                cell = json.loads(path.read_text(encoding="utf-8"))
                name = cell["name"]
                complete = cell["status"] == "failed" or bool(cell["win_rates"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is no result of a cell ({error!r}); delete it and run the study again"
                ) from None
            if name in cells or not complete:
                raise ValueError(f"{path}: cell {name} is {'given twice' if name in cells else 'empty'}")
            cells[name] = cell
    return list(cells.values())


def groups(cells):
    """{(task, method, kl): Group} of the grid's finished cells; cells that searched for a learning rate are left out.

    Raises:
      ValueError: the seeds of a group were measured on different numbers of prompts.
    """
    finished = [cell for cell in cells if cell["status"] == "done" and cell["rate"] is None]
    finished.sort(key=lambda cell: (cell["task"], cell["method"], cell["kl"], cell["seed"]))
    found = {}
    for key, rows in itertools.groupby(finished, key=lambda cell: (cell["task"], cell["method"], cell["kl"])):
        rows = list(rows)
        if len({len(row["kl_P"]) for row in rows}) > 1:
            raise ValueError(f"the seeds of {' '.join(map(str, key))} were measured on different numbers of prompts")
        wins = {
            judge: {name: np.stack([row["win_rates"][judge][name] for row in rows]) for name in by_procedure}
            for judge, by_procedure in rows[0]["win_rates"].items()
        }
        kl_S = np.array([row["kl_measured"] for row in rows])
        found[key] = Group(*key, tuple(row["seed"] for row in rows), kl_S, wins, rows)
    return found


def win_rates(found):
    """One row per group, judge and procedure, with its 95 % interval over prompts and seeds (`bootstrap.mean_interval`)."""
    rows = []
    for group in found.values():
        for judge, procedure in _measured(group):
            value, low, high = bootstrap.mean_interval(group.wins[judge][procedure])
            low, high = max(low, 0.0), min(high, 1.0)  # seeds that differ much make an interval wider than that
            row = {**_identity(group), "judge": judge, "procedure": procedure, "seeds": len(group.seeds)}
            off = bool(np.abs(group.kl_S / group.kl - 1).max() > OFF_TARGET)
            kl = float(group.kl_S.mean())
            rows.append({**row, "kl_measured": kl, "off_target": off, "win_rate": value, "low": low, "high": high})
    return rows


def differences(found):
    """Paired differences of every calibrated method to identity, to each exponential(t) and to each uncalibrated baseline.

    And to the best of those baselines. Seeds that both have count; prompts and seeds are paired. 'best uncalibrated' is
    the baseline with the highest mean at that task, KL, judge and procedure: chosen on the same prompts, so in the
    baseline's favour.
    """
    rows = []
    for group in found.values():
        if is_uncalibrated(group.method):
            continue
        rivals = [g for g in found.values() if (g.task, g.kl) == (group.task, group.kl) and g.method != group.method]
        rivals = [g for g in rivals if is_uncalibrated(g.method) or g.method.startswith(("identity", "exponential"))]
        for judge, procedure in _measured(group):
            made = [_difference(group, rival, judge, procedure) for rival in rivals]
            made = [row for row in made if row is not None]
            rows += made
            weak = [row for row in made if is_uncalibrated(row["baseline"])]
            if weak:
                best = min(weak, key=lambda row: row["difference"])
                rows.append({**best, "baseline": "best uncalibrated", "is": best["baseline"]})
    return rows


def _difference(group, rival, judge, procedure):
    shared = [seed for seed in group.seeds if seed in rival.seeds]
    if not shared or procedure not in rival.wins.get(judge, {}):
        return None
    mine, theirs = (g.wins[judge][procedure][[g.seeds.index(seed) for seed in shared]] for g in (group, rival))
    value, low, high = bootstrap.mean_interval(mine - theirs)
    row = {**_identity(group), "baseline": rival.method, "judge": judge, "procedure": procedure, "seeds": len(shared)}
    return {**row, "difference": value, "low": low, "high": high}


def losses(rows, kl):
    """The robustness matrix at one KL: how far each method is below the best one, by task, judge and deployed procedure."""
    rows = [row for row in rows if row["kl"] == kl]
    best = {}
    for row in rows:
        place = row["task"], row["judge"], row["procedure"]
        best[place] = max(best.get(place, 0.0), row["win_rate"])
    keys = ("task", "method", "kl", "judge", "procedure")
    return [
        {**{key: row[key] for key in keys}, "loss": best[row["task"], row["judge"], row["procedure"]] - row["win_rate"]}
        for row in rows
    ]


def mean_rewards(found):
    """One row per group and judge: the mean reward of policy and reference, each a mean over seeds of the mean over responses.

    A win rate can rise while the mean falls: it does not see by how much a response is worse.
    """
    rows = []
    for group in found.values():
        for judge in group.wins:
            told = [(c["rewards"].get(judge), c.get("reference_rewards", {}).get(judge)) for c in group.cells]
            if not any(None in pair for pair in told):
                policy, reference = np.mean(told, axis=0).tolist()
                rows.append({**_identity(group), "judge": judge, "reward": policy, "reference": reference})
    return rows


def costs(found):
    """What each method's cells took, mean over seeds and KLs: rollouts, seconds, and the shares of them that calibration has.

    `calibration_share` is stage calibrate's part of the time of a run of one method: sft, calibrate and align. Of several
    methods on one table it is less.
    """
    rows = []
    for task, method in dict.fromkeys((group.task, group.method) for group in found.values()):
        cells = [c for g in found.values() if (g.task, g.method) == (task, method) for c in g.cells]
        stages = ("sft", "calibrate", "align")
        mean = {name: float(np.mean([cell["seconds"].get(name, 0.0) for cell in cells])) for name in stages}
        drawn = {name: float(np.mean([cell["rollouts"][name] for cell in cells])) for name in ("calibrate", "align")}
        rows.append(
            {
                "task": task,
                "method": method,
                "cells": len(cells),
                "calibration_rollouts": drawn["calibrate"],
                "training_rollouts": drawn["align"],
                "rollout_share": drawn["calibrate"] / max(sum(drawn.values()), 1.0),
                "sft_seconds": mean["sft"],
                "calibration_seconds": mean["calibrate"],
                "training_seconds": mean["align"],
                "calibration_share": mean["calibrate"] / max(sum(mean.values()), 1e-9),
                "device": cells[0]["device"],
            }
        )
    return rows


def is_uncalibrated(method):
    """Whether a method uses rewards as they are, without ranks among the reference's."""
    return method.partition("(")[0] in UNCALIBRATED


def _measured(group):
    return [(judge, procedure) for judge, by_procedure in group.wins.items() for procedure in by_procedure]


def _identity(group):
    return {"task": group.task, "method": group.method, "kl": group.kl}

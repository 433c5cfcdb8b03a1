"""Stage `evaluate`: inference-time win rates of all methods at equal KL, measured on held-out prompts."""

import functools
import importlib.metadata
import itertools
import platform
import time

import jax
import numpy as np
from absl import logging

from infalign_jax.core import bootstrap, optimal, procedures, theory
from infalign_jax.core.calibration import calibrate
from infalign_jax.core.winrate import win_rate_per_prompt
from infalign_jax.reporting import figures, html, records, tables
from infalign_jax.reporting.progress import Progress
from infalign_jax.stages import methods, order
from infalign_jax.stages.align import method_folder
from infalign_jax.stages.calibrate import load_table
from infalign_jax.stages.experiment import encode_split, load_reference, open_experiment
from infalign_jax.stages.measure import at_equal_kl, make_step, pool
from infalign_jax.stages.policies import interpolate, load_trained
from infalign_jax.stages.reward import open_reward
from infalign_jax.training import preemption, workdir
from infalign_jax.training.distributed import is_first
from infalign_jax.training.side_by_side import side_by_side


def run(config):
    """Measures every method of a config; writes rows, tables, figures and the report under `<workdir>/evaluate/`."""
    started = time.monotonic()
    experiment = open_experiment(config)
    folder, section = experiment.workdir / "evaluate", config.evaluate
    asked = order.evaluation_asked(config)
    result = workdir.done(folder)
    if result is not None and result.get("asked") == asked:
        return result
    table = load_table(config, experiment.workdir / "calibrate")
    prompts = encode_split(experiment, "test")
    reference = load_reference(experiment)
    step = make_step(experiment, reference, prompts, open_judges(experiment))
    base = step(reference, "evaluate/reference", 0.0)
    start = step(reference, "evaluate/policy", 0.0)  # every curve begins here: no KL, and a win rate of about one half
    runs = [(method, seed) for method in config.align.methods for seed in config.align.seeds]
    count = itertools.count(1)
    with Progress(len(runs), "evaluate", quiet=not is_first()) as bar:

        def measure_run(run):
            if preemption.noticed():
                preemption.stop("evaluate, which begins anew")
            trained = load_trained(experiment, method_folder(experiment.workdir, *run) / "variables")

            def measure(alpha):
                return step(interpolate(reference, trained, alpha), "evaluate/policy", alpha)

            between = [measure(alpha) for alpha in sorted(section.curve)]
            target = at_equal_kl(measure, config.align.target_kl, section.kl_tolerance, between)
            bar.update(next(count), {"kl": target.kl_P.mean(), "weight": target.alpha})
            return [start, *between, target]

        measured = side_by_side(measure_run, runs, config.align.at_once)
    # Per method the places of its curve, each measured once with every training seed; the last is the target KL.
    curves = {
        method: [
            pool(seeds)
            for seeds in zip(*(c for c, run in zip(measured, runs, strict=True) if run[0] == method), strict=True)
        ]
        for method in config.align.methods
    }
    table_size = config.calibrate.rollouts if config.calibrate.tails == "flat" else None
    files = {
        "results": _rows(config, {method: curve[-1:] for method, curve in curves.items()}, base, table_size),
        "frontier": _rows(config, curves, base),
        "comparisons": _comparisons(config, curves, base),
        "theory": _theory(config, max(m.kl_SP.mean() for curve in curves.values() for m in curve)),
        "kl_by_group": _kl_by_group(curves, prompts),
        "calibration": _reliability(config, table, encode_split(experiment, "train").groups),
        "samples": _samples(config, curves, base, prompts),
        "summary": _summary(experiment, curves, base),
    }
    for name, value in files.items():
        workdir.write_json(folder / f"{name}.json", value)
    shown = [row for row in files["comparisons"] if _is_headline(row, files["summary"]["headline"])]
    report = folder / "report.html"
    if is_first():
        html.write_report(folder)
        figures.save(figures.pictures(records.read(folder)), folder / "figures")
        parts = tables.win_rates(files["results"]), tables.differences(shown), f"report: {report}"
        print(*filter(None, parts), sep="\n\n")
    return workdir.finish(folder, {"asked": asked, "report": str(report)}, started)


def open_judges(experiment):
    """The judges of a run: 'train', the reward that was optimised, and 'gold', a second one, where there is one."""
    config, root = experiment.config, experiment.workdir
    judges = {"train": open_reward(experiment, config.reward, root / "reward_model")}
    if config.judge != "none":
        judges["gold"] = open_reward(experiment, config.judge, root / "judge")
    return judges


def told(config, base):
    """The judges whose rows are written: a second one that is the training reward itself is told once, as 'gold'."""
    return [judge for judge in base.rewards if judge != "train" or config.judge != config.reward]


def standard_error(values_SP):
    """Standard error over prompts of the mean over training seeds and prompts."""
    means_P = values_SP.mean(0)
    return float(means_P.std(ddof=1) / len(means_P) ** 0.5)


def evaluated_procedures(section):
    """The procedures a config asks for, as (kind, n, Procedure)."""
    rows = [("standard", 1, procedures.standard())]
    rows += [("best_of", n, procedures.best_of(n)) for n in section.best_of]
    return rows + [("worst_of", n, procedures.worst_of(n)) for n in section.worst_of]


def _rows(config, curves, base, table_size=None):
    """One row per method, measurement, procedure and judge; with a table size, also what theory predicts for such tables."""
    rows = []
    for method, curve in curves.items():
        for measurement in curve:
            kl_SP = measurement.kl_SP
            shared = {
                "method": method,
                "alpha": float(np.mean(measurement.alpha_S)),
                "kl": float(kl_SP.mean()),
                "kl_se": standard_error(kl_SP),
                "truncated": float(1.0 - measurement.ended_SPM.mean()),
            }
            for kind, n, procedure in evaluated_procedures(config.evaluate):
                predicted = {"theory": theory_at(method, procedure, shared["kl"])}
                if table_size is not None:
                    predicted["theory_table"] = theory_at(method, procedure, shared["kl"], table_size)
                for judge in told(config, base):
                    per_prompt = win_rate_per_prompt(procedure, measurement.rewards[judge], base.rewards[judge])
                    value, low, high = bootstrap.mean_interval(per_prompt, seed=config.seed)
                    win = {"win_rate": value, "low": max(low, 0.0), "high": min(high, 1.0)}
                    # Theory is about the reward that was trained on; the gold judge may be the same one.
                    known = judge == "train" or config.judge == config.reward
                    said = predicted if known else dict.fromkeys(predicted)
                    rows.append({**shared, "procedure": kind, "n": n, "judge": judge, **win, **said})
    return rows


def theory_at(method, procedure, kl, calibration_samples=None):
    """Win rate of a method's exact optimum at this KL, for exact calibration or for tables of K rollouts; None without one.

    None also at a KL that is too large to be resolved: what was measured there is reported all the same.
    """
    if methods.is_baseline(method):
        return None
    if kl < 1e-6:
        return 0.5
    return _resolved(_of_method, method, procedure, kl, calibration_samples)


def _resolved(win_rate, *arguments):
    """What theory says, or None where it refuses, which is said once. Names were checked when the run began, so that
    only the KL is left: a policy may have been measured beyond what float64, or a transform, can reach."""
    try:
        return win_rate(*arguments)
    except ValueError as error:
        logging.log_first_n(logging.WARNING, "theory's columns and curves leave out what it refuses: %s", 1, error)
        return None


def _of_method(method, procedure, kl, calibration_samples):
    return theory.win_rate(procedure, *_resolve(method, kl, calibration_samples), calibration_samples)


def _of_optimum(procedure, kl):
    return optimal.optimal_transform(procedure, kl=kl).win_rate


@functools.lru_cache(maxsize=256)
def _resolve(method, kl, calibration_samples):
    return optimal.resolve(method, kl=kl, calibration_samples=calibration_samples)


def _comparisons(config, curves, base):
    """Paired differences at the target KL between every two methods, prompt by prompt."""
    rows = []
    for kind, n, procedure in evaluated_procedures(config.evaluate):
        for judge in told(config, base):
            wins = {
                method: win_rate_per_prompt(procedure, curve[-1].rewards[judge], base.rewards[judge])
                for method, curve in curves.items()
            }
            for method, wins_SP in wins.items():
                for baseline, baseline_SP in wins.items():
                    if method != baseline:
                        value, low, high = bootstrap.mean_interval(wins_SP - baseline_SP, seed=config.seed)
                        row = {"method": method, "baseline": baseline, "procedure": kind, "n": n, "judge": judge}
                        rows.append({**row, "difference": value, "low": low, "high": high})
    return rows


def _is_headline(row, headline):
    """The differences a terminal shows: the headline procedure and judge, each pair once, the better method first."""
    return row["difference"] > 0 and all(row[key] == headline[key] for key in ("procedure", "n", "judge"))


def _theory(config, max_kl):
    """Closed-form curves of each calibrated method and of the certified optimum, up to the largest KL measured or resolved."""
    rows = []
    for kind, n, procedure in evaluated_procedures(config.evaluate):
        for kl in np.linspace(0.02, max_kl, 12).tolist():
            values = {"optimal": _resolved(_of_optimum, procedure, kl)}
            for method in config.align.methods:
                if not methods.is_baseline(method) and not method.startswith("optimal"):
                    values[method] = theory_at(method, procedure, kl)
            row = {"procedure": kind, "n": n, "kl": kl}
            rows += [
                {**row, "transform": name, "win_rate": value} for name, value in values.items() if value is not None
            ]
    return rows


def _kl_by_group(curves, prompts):
    """KL spent on each group of prompts at the target: what calibration evens out."""
    groups = np.array(prompts.groups)
    rows = []
    for method, curve in curves.items():
        for group in dict.fromkeys(prompts.groups):
            kl_SP = curve[-1].kl_SP[:, groups == group]
            error = standard_error(kl_SP) if kl_SP.shape[1] > 1 else 0.0
            rows.append({"method": method, "group": group, "kl": float(kl_SP.mean()), "kl_se": error})
    return rows


def _reliability(config, table, groups):
    """Histogram of u of the table's held-out reference rollouts: uniform if the calibration is right."""
    u_PH = np.asarray(calibrate(table.held_out_PH, table.rewards_PK, is_sorted=True))
    edges, groups = _equal_bins(config.calibrate.rollouts), np.array(groups)
    return {
        "bins": edges.tolist(),
        "counts_by_group": {
            g: np.histogram(u_PH[groups == g], edges)[0].tolist() for g in dict.fromkeys(groups.tolist())
        },
        "counts": np.histogram(u_PH, edges)[0].tolist(),
        "expected": u_PH.size / (len(edges) - 1),
        "note": f"{u_PH.shape[1]} reference rollouts per training prompt that are not in the table, calibrated with it",
        "K": config.calibrate.rollouts,
    }


def _equal_bins(K):
    """Edges of at most 20 bins that hold equally many of the K + 1 values 0, 1/K ... 1 where K + 1 has such a divisor."""
    bins = max((b for b in range(5, 21) if (K + 1) % b == 0), default=min(10, K + 1))
    return np.clip((np.arange(bins + 1) * (K + 1) / bins - 0.5) / K, 0.0, 1.0)


def _samples(config, curves, base, prompts):
    """The first responses of every policy to a few held-out prompts, with rewards calibrated by the reference's responses."""
    rows = []
    for method, measurement in [
        ("reference", pool([base])),
        *((method, curve[-1]) for method, curve in curves.items()),
    ]:
        for p in range(min(config.evaluate.show, len(prompts.texts))):
            u_M = np.asarray(calibrate(measurement.rewards["train"][0, p], base.rewards["train"][p]))
            for m in range(2):
                gold = float(measurement.rewards["gold"][0, p, m]) if "gold" in measurement.rewards else None
                rows.append(
                    {
                        "method": method,
                        "prompt": prompts.texts[p],
                        "completion": measurement.completions[p][m],
                        "reward": float(measurement.rewards["train"][0, p, m]),
                        "calibrated": float(u_M[m]),
                        "truncated": bool(~measurement.ended_SPM[0, p, m]),
                        "judge_reward": gold,
                    }
                )
    return rows


def _summary(experiment, curves, base):
    """What a reader of the report needs besides the rows: stages, config, versions, notes."""
    config, root = experiment.config, experiment.workdir
    head = procedures.from_name(config.evaluate.headline).name.partition("(")
    finished = {
        title: workdir.done(root / folder)
        for stage in order.STAGES[:-1]
        for title, folder in order.outputs(config, stage).items()
    }
    notes = []
    for method, curve in curves.items():
        kl = float(curve[-1].kl_SP.mean())
        if abs(kl / config.align.target_kl - 1) > 2 * config.evaluate.kl_tolerance:
            notes.append(f"{method} could not be brought to the target KL: it is compared at {kl:.3f} nats")
    if "gold" not in base.rewards:
        notes.append("there is no second judge: win rates are under the training reward only")
    elif config.judge == "learned":
        notes.append("the gold judge is a reward model trained on other preference pairs, not the truth")
    return {
        "target_kl": config.align.target_kl,
        "headline": {
            "procedure": head[0],
            "n": int(head[2].rstrip(")") or 1),
            "judge": "gold" if "gold" in base.rewards else "train",
        },
        "stages": [
            {
                "name": name,
                "seconds": result.get("stage_seconds"),
                "numbers": {k: v for k, v in result.items() if isinstance(v, (int, float)) and k != "stage_seconds"},
            }
            for name, result in finished.items()
        ],
        "config": config.to_dict(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "infalign-jax")},
            "device": jax.devices()[0].device_kind,
        },
        "notes": notes,
        "truncated_fraction": {
            "reference": float(1 - base.ended_PM.mean()),
            **{method: float(1 - curve[-1].ended_SPM.mean()) for method, curve in curves.items()},
        },
    }

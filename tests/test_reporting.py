"""Reports: what is shown is what was measured, nothing a model writes can harm the page, and no number is written twice."""

import html.parser
import io
import itertools
import json
import re

import numpy as np
import pytest

from infalign_jax.reporting import figures, html, metrics, picture, progress, records, style, tables
from infalign_jax.reporting.calibration_figures import expected_counts

ALL_METHODS = ["raw", "raw_group_std", "identity", "log", "exponential(10)", "exponential(-5)", "optimal(best_of(8))"]
PROCEDURES = [("standard", 1), *itertools.product(("best_of", "worst_of"), (2, 4, 8))]
GROUPS = ["calm", "dry", "formal", "funny", "loud", "warm"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" \x00\x1b[31m \u202e ünï 漢字 🙂"
GRID = (np.arange(2000) + 0.5) / 2000
PHI = {
    "identity": GRID,
    "log": np.log(GRID),
    "exponential(10)": np.exp(10 * GRID),
    "exponential(-5)": -np.exp(-5 * GRID),
    "optimal(best_of(8))": GRID**5,
}


def _law(phi, beta, procedure, n):
    """(KL, win rate) of f ∝ exp(Φ/β) on a grid: W = 1 − ∫ g(F) g'."""
    f = np.exp((phi - phi.max()) / phi.std() / beta)
    f /= f.mean()
    cdf = np.clip(np.cumsum(f) / len(f) - f / len(f) / 2, 0, 1)
    if procedure == "worst_of":
        win = np.mean((1 - cdf) ** n * n * (1 - GRID) ** (n - 1))
    else:
        win = 1 - np.mean(cdf**n * n * GRID ** (n - 1))
    return float(np.mean(f * np.log(f))), float(win)


def _curve(method, procedure, n):
    betas = np.geomspace(0.2, 60, 40)
    points = sorted(_law(PHI[method], beta, procedure, n) for beta in betas)
    return [point for point in points if point[0] < 0.9]


def fake_evaluation(methods, seed=0):
    """Made-up numbers with the shape of a real evaluation; used only to draw test pictures."""
    rng = np.random.default_rng(seed)
    results, frontier, theory, kl_rows, samples = [], [], [], [], []
    for procedure, n in PROCEDURES:
        every = {m: _curve(m, procedure, n) for m in PHI}
        kl = np.linspace(0, 0.8, 41)
        tops = [np.interp(kl, *np.transpose([(0, 0.5), *curve])) for curve in every.values()]
        for name, values in [*zip(every, tops, strict=True), ("optimal", np.max(tops, axis=0) + 0.004 * np.minimum(1, kl * 10))]:
            theory += [
                {"procedure": procedure, "n": n, "transform": name, "kl": float(a), "win_rate": float(b)}
                for a, b in zip(kl, values, strict=True)
            ]
        for method, judge in itertools.product(methods, ("train", "gold")):
            base = {"method": method, "procedure": procedure, "n": n, "judge": judge}
            source = every.get(method, every["identity"])
            loss = {"raw": 0.62, "raw_group_std": 0.9}.get(method, 0.97) - (0.03 if judge == "gold" else 0)
            for alpha in (0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.1):
                at = 0.5 * alpha**1.8
                true = np.interp(at, *np.transpose([(0, 0.5), *source]))
                win = 0.5 + (true - 0.5) * loss + (0.001 * rng.standard_normal() if alpha else 0)
                width = 0.012 * min(1, alpha + 0.05) * (2 if method.startswith("raw") else 1)
                row = base | {"kl": at, "kl_se": 0.01, "win_rate": win, "low": win - width, "high": win + width}
                row["theory"] = float(true) if method in PHI else None
                frontier.append(row | {"alpha": alpha})
                if alpha == 1.0:
                    results.append(row)
    spent = {"raw": [0.13, 0.21, 0.34, 0.52, 0.88, 1.64], "raw_group_std": [0.46, 0.41, 0.52, 0.55, 0.5, 0.57]}
    for method in methods:
        for group, kl in zip(GROUPS, spent.get(method, 0.5 + 0.03 * rng.standard_normal(6)), strict=True):
            kl_rows.append({"method": method, "group": group, "kl": float(kl), "kl_se": 0.02})
        for prompt in ("tea garden calm :", "chess maths loud :"):
            words = "leaf pot steam cup" if "tea" in prompt else "rook proof gambit lemma axiom"
            judged = None if method == "raw" else 1.25
            samples.append(
                {"method": method, "prompt": prompt, "completion": words, "reward": 2.31, "calibrated": float(rng.uniform())}
                | {"truncated": method == "log", "judge_reward": judged}
            )
    pairs = [("exponential(10)", "identity"), ("exponential(10)", "raw_group_std"), ("identity", "raw"), ("exponential(-5)", "identity")]
    comparisons = []
    for (method, baseline), (procedure, n) in itertools.product(pairs, [("best_of", 4), ("best_of", 8), ("worst_of", 4)]):
        if method in methods and baseline in methods:
            at = {r["method"]: r["win_rate"] for r in records.select(results, procedure=(procedure, n), judge="gold")}
            gap = at[method] - at[baseline]
            comparisons.append(
                {"method": method, "baseline": baseline, "procedure": procedure, "n": n, "judge": "gold"}
                | {"difference": gap, "low": gap - 0.006, "high": gap + 0.006}
            )
    counts = {group: rng.multinomial(2048, np.ones(13) / 13).tolist() for group in GROUPS}
    calibration = {
        "bins": np.linspace(0, 1, 14).tolist(),
        "counts_by_group": counts,
        "counts": np.sum(list(counts.values()), axis=0).tolist(),
        "expected": 6 * 2048 / 13,
        "note": "Rewards have no ties.",
        "K": 64,
    }
    summary = {
        "target_kl": 0.5,
        "headline": {"procedure": "best_of", "n": 4, "judge": "gold"},
        "stages": [
            {"name": "sft", "seconds": 14.2, "numbers": {"loss": 2.104, "steps": 200, "truncated": 0.0}},
            {"name": "calibrate", "seconds": 6.8, "numbers": {"prompts": 272, "K": 64, "truncated": 0.012}},
            *({"name": f"align {m}", "seconds": 12.5, "numbers": {"kl": 0.498, "beta": 1.592, "reward": 0.83}} for m in methods),
            {"name": "evaluate", "seconds": 21.7, "numbers": {"prompts": 64, "rollouts": 64}},
        ],
        "config": {"seed": 0, "model": {"layers": 2, "width": 64, "heads": 4}, "methods": methods, "learning_rate": 3e-3},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.0", "infalign_jax": "0.1.0"},
        "notes": ["Best-of-8 of log reached a KL of 0.49 only.", "Rewards were standardised over all reference rollouts for raw."],
        "truncated_fraction": {"reference": 0.012, **dict.fromkeys(methods, 0.008)},
    }
    return records.Evaluation(results, comparisons, frontier, theory, kl_rows, calibration, samples, summary)


def write(evaluation, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in evaluation._asdict().items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder

"""An evaluation with made-up numbers and the shape of a real one: what the pictures of the tests are drawn from."""

import itertools

import numpy as np

from infalign_jax.reporting import records

PROCEDURES = [("standard", 1), *itertools.product(("best_of", "worst_of"), (2, 4, 8))]
GROUPS = ["calm", "dry", "formal", "funny", "loud", "warm"]
GRID = (np.arange(2000) + 0.5) / 2000
PHI = {
    "identity": GRID,
    "log": np.log(GRID),
    "exponential(10)": np.exp(10 * GRID),
    "exponential(-5)": -np.exp(-5 * GRID),
    "optimal(best_of(8))": GRID**5,
}
PAIRS = [
    ("exponential(10)", "identity"),
    ("exponential(10)", "raw_group_std"),
    ("identity", "raw"),
    ("exponential(-5)", "identity"),
]


def evaluation(methods, seed=0):
    """A `records.Evaluation` of these methods."""
    rng = np.random.default_rng(seed)
    results, frontier, theory = [], [], []
    for procedure, n in PROCEDURES:
        every = {m: _curve(m, procedure, n) for m in PHI}
        theory += _theory(every, procedure, n)
        for method, judge in itertools.product(methods, ("train", "gold")):
            rows = _measured(method, judge, every, procedure, n, rng)
            frontier += rows
            results += [{k: v for k, v in row.items() if k != "alpha"} for row in rows if row["alpha"] == 1.0]
    kl_rows, samples = [], []
    for method in methods:
        kl_rows += _kl_by_group(method, rng)
        samples += _samples(method, rng)
    return records.Evaluation(
        results,
        _comparisons(results, methods),
        frontier,
        theory,
        kl_rows,
        _calibration(rng),
        samples,
        _summary(methods),
    )


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


def _theory(every, procedure, n):
    kl = np.linspace(0, 0.8, 41)
    curves = {name: np.interp(kl, *np.transpose([(0, 0.5), *curve])) for name, curve in every.items()}
    curves["optimal"] = np.max(list(curves.values()), axis=0) + 0.004 * np.minimum(1, kl * 10)
    return [
        {"procedure": procedure, "n": n, "transform": name, "kl": float(a), "win_rate": float(b)}
        for name, values in curves.items()
        for a, b in zip(kl, values, strict=True)
    ]


def _measured(method, judge, every, procedure, n, rng):
    """Rows of a method's curve: near the theory where there is one."""
    source = every.get(method, every["identity"])
    loss = {"raw": 0.62, "raw_group_std": 0.9}.get(method, 0.97) - (0.03 if judge == "gold" else 0)
    rows = []
    for alpha in (0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.1):
        at = 0.5 * alpha**1.8
        true = np.interp(at, *np.transpose([(0, 0.5), *source]))
        win = 0.5 + (true - 0.5) * loss + (0.001 * rng.standard_normal() if alpha else 0)
        width = 0.012 * min(1, alpha + 0.05) * (2 if method.startswith("raw") else 1)
        rows.append(
            {"method": method, "procedure": procedure, "n": n, "judge": judge, "kl": at, "kl_se": 0.01}
            | {"win_rate": win, "low": win - width, "high": win + width, "alpha": alpha}
            | {"theory": float(true) if method in PHI else None}
        )
    return rows


def _kl_by_group(method, rng):
    spent = {"raw": [0.13, 0.21, 0.34, 0.52, 0.88, 1.64], "raw_group_std": [0.46, 0.41, 0.52, 0.55, 0.5, 0.57]}
    values = spent.get(method, 0.5 + 0.03 * rng.standard_normal(6))
    return [
        {"method": method, "group": group, "kl": float(kl), "kl_se": 0.02}
        for group, kl in zip(GROUPS, values, strict=True)
    ]


def _samples(method, rng):
    said = {"tea garden calm :": "leaf pot steam cup", "chess maths loud :": "rook proof gambit lemma axiom"}
    return [
        {"method": method, "prompt": prompt, "completion": words, "reward": 2.31, "calibrated": float(rng.uniform())}
        | {"truncated": method == "log", "judge_reward": None if method == "raw" else 1.25}
        for prompt, words in said.items()
    ]


def _comparisons(results, methods):
    rows = []
    for pair, (procedure, n) in itertools.product(PAIRS, [("best_of", 4), ("best_of", 8), ("worst_of", 4)]):
        if set(pair) <= set(methods):
            rates = {
                r["method"]: r["win_rate"] for r in records.select(results, procedure=(procedure, n), judge="gold")
            }
            gap = rates[pair[0]] - rates[pair[1]]
            rows.append(
                {"method": pair[0], "baseline": pair[1], "procedure": procedure, "n": n, "judge": "gold"}
                | {"difference": gap, "low": gap - 0.006, "high": gap + 0.006}
            )
    return rows


def _calibration(rng):
    counts = {group: rng.multinomial(2048, np.ones(13) / 13).tolist() for group in GROUPS}
    return {
        "bins": np.linspace(0, 1, 14).tolist(),
        "counts_by_group": counts,
        "counts": np.sum(list(counts.values()), axis=0).tolist(),
        "expected": 6 * 2048 / 13,
        "note": "Rewards have no ties.",
        "K": 64,
    }


def _summary(methods):
    stages = [
        ("sft", 14.2, {"loss": 2.104, "steps": 200, "truncated": 0.0}),
        ("calibrate", 6.8, {"prompts": 272, "K": 64, "truncated": 0.012}),
        *((f"align {m}", 12.5, {"kl": 0.498, "beta": 1.592, "reward": 0.83}) for m in methods),
        ("evaluate", 21.7, {"prompts": 64, "rollouts": 64}),
    ]
    model = {"layers": 2, "width": 64, "heads": 4}
    return {
        "target_kl": 0.5,
        "headline": {"procedure": "best_of", "n": 4, "judge": "gold"},
        "stages": [{"name": name, "seconds": seconds, "numbers": numbers} for name, seconds, numbers in stages],
        "config": {"seed": 0, "model": model, "methods": methods, "learning_rate": 3e-3},
        "versions": {"python": "3.11.9", "jax": "0.10.2", "flax": "0.12.0", "infalign-jax": "0.1.0"},
        "notes": [
            "Best-of-8 of log reached a KL of 0.49 only.",
            "Rewards were standardised over all reference rollouts for raw.",
        ],
        "truncated_fraction": {"reference": 0.012, **dict.fromkeys(methods, 0.008)},
    }

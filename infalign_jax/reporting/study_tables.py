"""The tables of a study's report, in Markdown, from the rows of `study_results` and `report`."""

from infalign_jax.reporting import style
from infalign_jax.reporting.tables import interval


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


def target_table(ceiling_rows, difference_rows):
    """Every transform that is made for best-of-N at best-of-N, and the same for worst-of-N: what the targets are about."""
    found = {(r["method"], r["kl"], r["procedure"], r["baseline"]): r for r in difference_rows if r["judge"] == "train"}

    def difference(row, baseline):
        pair = found.get((row["method"], row["kl"], row["procedure"], baseline))
        if pair is None:
            return "–"
        which = f" ({pair['is']})" if "is" in pair else ""
        return interval(pair, "difference", "+") + which

    table = [
        [
            f"{row['kl']:g}",
            row["procedure"],
            row["method"],
            interval(row),
            _share(row),
            *(difference(row, baseline) for baseline in ("best uncalibrated", "ppo")),
        ]
        for row in sorted(
            ceiling_rows,
            key=lambda row: (row["kl"], row["procedure"].partition("(")[0], len(row["procedure"]), row["procedure"]),
        )
        if style.family(row["method"]) == ("exponential+" if row["procedure"].startswith("best") else "exponential-")
        or row["method"].startswith(f"optimal({row['procedure'].partition('(')[0]}(")
    ]
    return markdown(
        ["KL", "procedure", "transform", "win rate", "share of the gain", "− best uncalibrated", "− PPO"], table
    )


def _share(row):
    if row["share_of_gain"] is None:
        return "–"
    return f"{100 * row['share_of_gain']:.0f} % [{100 * row['share_low']:.0f}, {100 * row['share_high']:.0f}]"


def win_rate_table(rows):
    """Win rates with intervals: methods down, procedures across."""
    names, table = _pivot(rows, interval)
    first = {row["method"]: row for row in rows}
    marked = [
        [f"{m}{'*' if first[m]['off_target'] else ''}", f"{first[m]['kl_measured']:.3f}", first[m]["seeds"], *cells]
        for m, *cells in table
    ]
    return markdown(["method", "KL", "seeds", *names], marked)


def difference_table(rows, judge):
    """Paired differences under one judge, with the most that theory leaves for each."""
    shown = ("identity", "best uncalibrated", "ppo", "max_at_k", "exponential")
    ceilings = {_pair(row): row["ceiling"] for row in rows if row["judge"] == "train"}
    rows = [row for row in rows if row["judge"] == judge and row["baseline"].partition("(")[0] in shown]
    table = [
        [
            f"{row['method']} − {row['baseline']}" + (f" ({row['is']})" if "is" in row else ""),
            f"{row['kl']:g}",
            row["procedure"],
            row["seeds"],
            interval(row, "difference", "+"),
            "–" if ceilings.get(_pair(row)) is None else f"{ceilings[_pair(row)]:+.3f}",
        ]
        for row in rows
    ]
    return markdown(["difference", "KL", "procedure", "seeds", "value", "most in theory"], table)


def _pair(row):
    return tuple(row[key] for key in ("method", "baseline", "kl", "procedure"))


def ceiling_table(rows):
    """Measured win rates beside theory's."""
    table = [
        [
            row["method"],
            f"{row['kl']:g}",
            row["procedure"],
            f"{row['win_rate']:.3f}",
            f"{row['identity']:.3f} ({row['identity_table']:.3f})",
            f"{row['optimum']:.3f} ({row['optimum_table']:.3f})",
            _share(row),
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


def loss_table(rows):
    """The robustness matrix."""
    names, table = _pivot(rows, lambda row: f"{row['loss']:.3f}")
    return markdown(["method", *names], table)


def reward_table(rows):
    """Mean rewards, the reference's in brackets: methods down, judges and KLs across."""
    columns = list(dict.fromkeys((row["judge"], row["kl"]) for row in rows))
    found = {(row["method"], row["judge"], row["kl"]): f"{row['reward']:.2f} ({row['reference']:.2f})" for row in rows}
    table = [
        [method, *(found.get((method, *column), "–") for column in columns)]
        for method in style.order(row["method"] for row in rows)
    ]
    return markdown(["method", *(f"{judge}, KL {kl:g}" for judge, kl in columns)], table)


def cost_table(rows):
    """Rollouts and seconds of each method, and calibration's share of both."""
    table = [
        [
            row["method"],
            row["cells"],
            f"{row['calibration_rollouts']:.0f}",
            f"{row['training_rollouts']:.0f}",
            f"{100 * row['rollout_share']:.0f} %",
            *(f"{row[name]:.1f}" for name in ("sft_seconds", "calibration_seconds", "training_seconds")),
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
        "calibration, of rollouts",
        "s, sft",
        "s, calibrate",
        "s, align",
        "calibration, of the run",
        "device",
    ]
    return markdown(header, table)


def run_table(rows):
    """Every cell: what it measured, or what failed."""
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

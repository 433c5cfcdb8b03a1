"""What calibration does: the KL each prompt group is given, and whether u is uniform on held-out reference rollouts."""

import math
from functools import partial

import numpy as np

from infalign_jax.reporting import records, style
from infalign_jax.reporting.picture import Panel, Picture

LOW, HIGH = style.LOOKS["identity"].color, style.LOOKS["exponential+"].color
MOST_CELLS = 14


def kl_by_group(evaluation):
    """KL spent on each prompt group: a strip of dots a method, beside the numbers, coloured around the target."""
    rows = evaluation.kl_by_group
    methods = style.looks(row["method"] for row in rows)
    groups = records.unique(rows, "group")
    target = evaluation.summary["target_kl"]
    height = 1.5 + 0.46 * len(methods)
    panels = [Panel(partial(_strips, rows=rows, methods=methods, target=target), (4.9, height))]
    if len(groups) <= MOST_CELLS:
        panels.append(
            Panel(
                partial(_cells, rows=rows, methods=methods, groups=groups, target=target),
                (5.4 if len(groups) <= 6 else 1.6 + 0.64 * len(groups), height),
            )
        )
    return Picture(
        name="kl_by_group",
        title="Where the KL goes: KL spent on each group of prompts",
        caption=f"KL from the reference in nats per sequence, by prompt group, for policies meant to spend {target:g} "
        "on average (dotted line). First: one dot a group, ± standard error, and the ratio of the largest to the "
        "smallest. Second: the numbers, blue below the target and orange above.",
        panels=panels,
        columns=len(panels),
    )


def _method_axis(axes, methods):
    axes.set_yticks(range(len(methods)), [style.label(method) for method in methods])
    for label, look in zip(axes.get_yticklabels(), methods.values(), strict=True):
        label.set(color=look.color, fontweight="bold")
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)


def _strips(axes, rows, methods, target):
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.axvline(target, color=style.INK, linewidth=1, linestyle=(0, (1, 2)))
    floor = max(1e-4, min((row["kl"] for row in rows if row["kl"] > 0), default=target))
    for place, (method, look) in enumerate(methods.items()):
        mine = records.select(rows, method=method)
        kl = np.maximum([row["kl"] for row in mine], floor)
        errors = np.array([row["kl_se"] for row in mine])
        axes.plot([kl.min(), kl.max()], [place, place], color=look.color, linewidth=5, alpha=0.2)
        for value, error in zip(kl, errors, strict=True):
            axes.plot(
                [max(value - error, floor / 2), value + error],
                [place, place],
                color=look.color,
                linewidth=1.4,
                alpha=0.8,
            )
        axes.scatter(
            kl,
            [place] * len(kl),
            marker=look.marker,
            s=44,
            color=look.color,
            edgecolor=style.PAPER,
            linewidth=0.7,
            alpha=0.85,
            zorder=4,
        )
        ratio = f"×{kl.max() / kl.min():.2g}" if kl.max() / kl.min() < 100 else "×>100"
        axes.text(
            1.03, place, ratio, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5, fontweight="bold"
        )
    axes.text(
        1.03, -0.62, "max/min", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8.5, color=style.MUTED
    )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, target / 3), max(high, target * 3))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _method_axis(axes, methods)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("KL per prompt group (nats per sequence, log scale)")
    axes.set_title("Spread over prompt groups")


def _cells(axes, rows, methods, groups, target):
    from matplotlib.patches import Rectangle

    values = {(row["method"], row["group"]): row["kl"] for row in rows}
    for place, method in enumerate(methods):
        for column, group in enumerate(groups):
            if (method, group) not in values:
                continue
            kl = values[method, group]
            strength = min(1.0, abs(math.log(max(kl, 1e-6) / target)) / math.log(4))
            box = Rectangle(
                (column - 0.47, place - 0.44),
                0.94,
                0.88,
                color=HIGH if kl > target else LOW,
                alpha=0.75 * strength,
                linewidth=0,
            )
            axes.add_patch(box)
            axes.text(column, place, f"{kl:.2f}", ha="center", va="center", fontsize=9)
    _method_axis(axes, methods)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    crowded = sum(len(str(group)) for group in groups) > 8 * len(groups)
    axes.set_xticks(
        range(len(groups)),
        [style.label(group) for group in groups],
        rotation=30 if crowded else 0,
        ha="right" if crowded else "center",
    )
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel("prompt group")
    axes.set_title(f"KL in nats (target {target:g})")


def expected_counts(bins, counts_total, K):
    """Counts that perfect calibration gives each bin: a new rollout takes each of the K + 1 values k/K alike.

    Args: bin edges (increasing, the last bin closed), the number of rollouts, and the table size K. Exact when rewards
    have no ties; it tends to the uniform law as K grows, and keeps a bin that happens to hold more of the values k/K
    from looking like a fault.
    """
    counts, _ = np.histogram(np.arange(K + 1) / K, bins=np.asarray(bins, np.float64))
    return counts_total * counts / (K + 1)


def reliability(evaluation):
    """Histogram of u on held-out reference rollouts, all and by group, with the 95 % band of a bin of a fair table."""
    calibration = evaluation.calibration
    groups = {"All prompts": calibration["counts"], **calibration["counts_by_group"]}
    panels = [
        Panel(partial(_histogram, title=style.label(name), counts=counts, calibration=calibration), (3.6, 2.7))
        for name, counts in groups.items()
    ]
    return Picture(
        name="reliability",
        title="Is the calibration right? A flat histogram is the proof",
        caption=f"Calibrated reward u of held-out reference rollouts against a table of K = {calibration['K']} "
        "other rollouts of the same "
        f"prompt: rollouts per bin; a uniform u puts {calibration['expected']:.4g} in each. Line and band: the "
        "expected count for this K "
        f"and the 95 % range of one bin when rollouts are independent. {calibration['note']}",
        panels=panels,
        columns=min(4, len(panels)),
    )


def _histogram(axes, title, counts, calibration):
    counts, bins = np.asarray(counts, np.float64), np.asarray(calibration["bins"], np.float64)
    expected = expected_counts(bins, counts.sum(), calibration["K"])
    share = expected / max(counts.sum(), 1)
    half = 1.96 * np.sqrt(expected * (1 - share))
    outside = int(np.sum(np.abs(counts - expected) > half))
    axes.stairs(counts, bins, fill=True, color=LOW, alpha=0.22)
    axes.stairs(counts, bins, color=LOW, linewidth=1.2)
    axes.fill_between(
        bins,
        *(np.append(edge, edge[-1]) for edge in (expected - half, expected + half)),
        step="post",
        color=HIGH,
        alpha=0.28,
        linewidth=0,
    )
    axes.stairs(expected, bins, baseline=None, color=HIGH, linewidth=1.2)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, max(counts.max(initial=0), (expected + half).max(initial=0)) * 1.12 or 1)
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes.yaxis.get_major_locator().set_params(nbins=5)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("calibrated reward u")
    axes.set_ylabel("rollouts per bin")
    axes.set_title(title)
    axes.text(
        0.98,
        0.96,
        f"{outside} of {len(counts)} outside",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=8,
        color=style.MUTED,
    )

"""The pictures of a run: win rate against KL and by procedure, KL spent per group, reliability of the calibration.

Each function takes an `Evaluation` (records.py) and returns a `Picture` (picture.py); matplotlib is only used through
its objects, never through pyplot, so nothing global changes and no display is needed.
"""

from functools import partial

from infalign_jax.reporting import records, style, tables
from infalign_jax.reporting.calibration_figures import kl_by_group, reliability
from infalign_jax.reporting.picture import Panel, Picture, save, spread

__all__ = ["headline", "kl_by_group", "pictures", "reliability", "save", "win_rate_against_kl", "win_rate_by_procedure"]

JUDGES = {"gold": "gold reward", "train": "training reward"}


def judge_title(judge):
    """'gold' -> 'gold reward'; other judges keep their name."""
    return JUDGES.get(judge, style.label(judge))


def headline(evaluation):
    """Why it won: win rate against KL for the headline procedure with the theoretical optimum, beside the target KL."""
    key, judge = records.headline_key(evaluation)
    procedure, target = records.procedure_title(key), evaluation.summary["target_kl"]
    methods = style.looks(row["method"] for row in evaluation.results)
    curves = partial(_curves, evaluation=evaluation, key=key, judge=judge, methods=methods, labels=True)
    points = partial(_points, evaluation=evaluation, key=key, judge=judge, methods=methods)
    height = max(4.3, 1.6 + 0.42 * len(methods))
    return Picture(
        name="headline",
        title=f"{style.capitalized(procedure)}: win rate over the reference, at equal KL",
        caption=f"First: probability that {procedure} of the aligned policy beats {procedure} of the reference policy "
        f"({judge_title(judge)}), against the KL spent; each curve interpolates between the reference and the "
        "trained weights, "
        "shading is the 95 % interval over prompts, the dashed line is the best any policy can do in theory. "
        f"Second: the same at KL {target:g} nats; an upright bar marks what theory predicts for the method, "
        "a hollow marker is the other judge where there is one.",
        panels=[Panel(curves, (4.9, height)), Panel(points, (4.9, height))],
        columns=2,
    )


def _curves(axes, evaluation, key, judge, methods, labels):
    rows = records.select(evaluation.frontier, procedure=key, judge=judge)
    target = evaluation.summary["target_kl"]
    axes.set_title(f"Against KL, judged by the {judge_title(judge)}" if labels else records.procedure_title(key))
    axes.axvline(target, color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    ends = {}
    for method, look in methods.items():
        curve = sorted(records.select(rows, method=method), key=lambda row: row["kl"])
        kl = [row["kl"] for row in curve]
        if curve:
            axes.fill_between(
                kl, *([row[end] for row in curve] for end in ("low", "high")), color=look.color, alpha=0.14, linewidth=0
            )
            axes.plot(kl, [row["win_rate"] for row in curve], color=look.color, zorder=3)
            ends[method] = (kl[-1], curve[-1]["win_rate"])
        for row in records.select(evaluation.results, procedure=key, judge=judge, method=method):
            _mark(axes, (row["kl"], row["win_rate"]), look)
    last = max([row["kl"] for row in rows], default=target) * 1.01
    best = [row for row in records.select(evaluation.theory, procedure=key, transform="optimal") if row["kl"] <= last]
    best.sort(key=lambda row: row["kl"])
    if best:
        axes.plot(
            [row["kl"] for row in best],
            [row["win_rate"] for row in best],
            color=style.INK,
            linestyle="--",
            linewidth=1.3,
            zorder=2,
        )
        ends["theory optimum"] = (best[-1]["kl"], best[-1]["win_rate"])
    axes.set_xlim(0, last)
    axes.set_xlabel(style.KL_LABEL if labels else "KL (nats per sequence)")
    axes.set_ylabel("win rate over the reference")
    if labels:
        _label_ends(axes, ends, {method: look.color for method, look in methods.items()})


def _mark(axes, point, look, hollow=False, size=48):
    axes.scatter(
        *([value] for value in point),
        marker=look.marker,
        s=size,
        color="none" if hollow else look.color,
        edgecolor=look.color if hollow else style.PAPER,
        linewidth=1.2 if hollow else 0.8,
        zorder=4 if hollow else 5,
        clip_on=False,
    )


def _label_ends(axes, ends, colors):
    """Names beside the ends of the curves, moved apart, with hair lines back to the curve."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    heights = spread([(value - low) / (high - low) for _, value in ends.values()], gap=0.058)
    for (name, point), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            style.label(name),
            point,
            (1.045, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colors.get(name, style.INK),
            fontweight="bold" if name in colors else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colors.get(name, style.INK),
                "linewidth": 0.6,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 2,
            },
            annotation_clip=False,
        )


def _points(axes, evaluation, key, judge, methods):
    rows = sorted(records.select(evaluation.results, procedure=key, judge=judge), key=lambda row: row["win_rate"])
    places = {row["method"]: place for place, row in enumerate(rows)}
    others = [
        row
        for row in records.select(evaluation.results, procedure=key)
        if row["judge"] != judge and row["method"] in places
    ]
    for row in others:
        _mark(axes, (row["win_rate"], places[row["method"]] - 0.27), methods[row["method"]], hollow=True, size=24)
    for place, row in enumerate(rows):
        look = methods[row["method"]]
        axes.plot([row["low"], row["high"]], [place, place], color=look.color, linewidth=3.2, alpha=0.55, zorder=3)
        _mark(axes, (row["win_rate"], place), look, size=58)
        if row["theory"] is not None:
            axes.plot([row["theory"]] * 2, [place - 0.28, place + 0.28], color=style.INK, linewidth=1.4, zorder=2)
        axes.text(1.03, place, tables.interval(row), transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [style.label(row["method"]) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=methods[row["method"]].color, fontweight="bold")
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"At KL {evaluation.summary['target_kl']:g} nats")
    axes.set_xlabel("win rate over the reference")
    _point_key(axes, judge, records.unique(others, "judge"), any(row["theory"] is not None for row in rows))


def _point_key(axes, judge, others, theory):
    from matplotlib.lines import Line2D

    look = {"color": style.MUTED, "linestyle": "none"}
    handles = [Line2D([], [], marker="o", markersize=7, label=f"{judge_title(judge)}, 95 % interval", **look)]
    for other in others:
        handles.append(
            Line2D([], [], marker="o", markersize=5, markerfacecolor="none", label=judge_title(other), **look)
        )
    if theory:
        handles.append(Line2D([], [], marker="|", markersize=11, color=style.INK, linestyle="none", label="theory"))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=len(handles),
        handletextpad=0.2,
        columnspacing=1.2,
    )


def win_rate_against_kl(evaluation, judge=None):
    """Win rate against KL for every procedure, one panel each, with the theoretical optimum; first comes the legend."""
    judge = judge or records.headline_key(evaluation)[1]
    rows = records.select(evaluation.frontier, judge=judge)
    methods = style.looks(row["method"] for row in evaluation.results)
    keys = sorted(records.unique(rows, records.procedure_key), key=records.procedure_position)
    panels = [Panel(partial(_legend, methods=methods, theory=bool(evaluation.theory)), (3.7, 3.1))]
    panels += [
        Panel(partial(_curves, evaluation=evaluation, key=key, judge=judge, methods=methods, labels=False), (3.7, 3.1))
        for key in keys
    ]
    return Picture(
        name="win_rate_against_kl" if judge == records.headline_key(evaluation)[1] else f"win_rate_against_kl_{judge}",
        title=f"Win rate against KL, {judge_title(judge)}",
        caption="Win rate of each procedure applied to the policy over the same procedure applied to the reference, "
        "against the KL "
        "spent in nats per sequence. Shading: 95 % interval over prompts. Markers: the trained policy at the "
        "target KL (dotted line). "
        "Dashed: the theoretical optimum for that procedure with continuous rewards.",
        panels=panels,
        columns=min(4, len(panels)),
    )


def _legend(axes, methods, theory):
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker,
            markersize=7,
            markeredgecolor=style.PAPER,
            label=style.label(method),
        )
        for method, look in methods.items()
    ]
    if theory:
        handles.append(Line2D([], [], color=style.INK, linestyle="--", linewidth=1.3, label="theory optimum"))
    axes.set_axis_off()
    axes.legend(handles=handles, loc="center left", fontsize=10, labelspacing=0.75, handlelength=2.4)


def win_rate_by_procedure(evaluation):
    """Win rate at the target KL over all procedures, from worst-of-N to best-of-N; one panel a judge."""
    head = records.headline_key(evaluation)[1]
    judges = sorted(records.unique(evaluation.results, "judge"), key=lambda judge: judge != head)
    methods = style.looks(row["method"] for row in evaluation.results)
    panels = [
        Panel(partial(_profile, evaluation=evaluation, judge=judge, methods=methods), (4.9, 4.0)) for judge in judges
    ]
    return Picture(
        name="win_rate_by_procedure",
        title=f"Which method for which procedure, at KL {evaluation.summary['target_kl']:g} nats",
        caption="Win rate over the reference when both are used through the same procedure, from the most "
        "adversarial on the left to the "
        "most helpful on the right. Vertical lines: 95 % intervals over prompts.",
        panels=panels,
        columns=len(panels),
    )


def _profile(axes, evaluation, judge, methods):
    rows = records.select(evaluation.results, judge=judge)
    keys = sorted(records.unique(rows, records.procedure_key), key=records.procedure_position)
    ends = {}
    for method, look in methods.items():
        mine = {records.procedure_key(row): row for row in records.select(rows, method=method)}
        line = [(place, mine[key]) for place, key in enumerate(keys) if key in mine]
        for place, row in line:
            axes.plot([place, place], [row["low"], row["high"]], color=look.color, linewidth=2.6, alpha=0.45)
            _mark(axes, (place, row["win_rate"]), look, size=36)
        if line:
            axes.plot(
                [place for place, _ in line], [row["win_rate"] for _, row in line], color=look.color, linewidth=1.4
            )
            ends[method] = (line[-1][0], line[-1][1]["win_rate"])
    axes.set_xticks(
        range(len(keys)), [records.procedure_title(key).replace("-of-", "\nof ") for key in keys], fontsize=8
    )
    axes.set_xlim(-0.3, len(keys) - 0.75)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("procedure")
    axes.set_ylabel("win rate over the reference")
    axes.set_title(style.capitalized(judge_title(judge)))
    _label_ends(axes, ends, {method: look.color for method, look in methods.items()})


def pictures(evaluation):
    """Every picture the evaluation has rows for, the headline first."""
    head = records.headline_key(evaluation)[1]
    drawn = [headline(evaluation), win_rate_by_procedure(evaluation)]
    if evaluation.kl_by_group:
        drawn.append(kl_by_group(evaluation))
    if evaluation.calibration["counts"]:
        drawn.append(reliability(evaluation))
    for judge in sorted(records.unique(evaluation.frontier, "judge"), key=lambda judge: judge != head):
        drawn.append(win_rate_against_kl(evaluation, judge))
    return drawn

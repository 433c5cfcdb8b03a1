"""The pictures of a study: win rate against KL, the robustness matrix, and what happens to the true reward as KL grows."""

from functools import partial

import numpy as np

from infalign_jax.reporting import style
from infalign_jax.reporting.picture import Panel, Picture
from infalign_jax.reporting.study_results import is_uncalibrated

COMPARED = ("best_of(4)", "best_of(16)", "worst_of(4)")  # procedures of the picture that compares all methods
FLOOR = 0.45  # policies that lose to the reference by more (made for worst-of-n) are told in words: they would squeeze the rest
KINDS = (
    "Grey: methods that use rewards as they are; blue: ranks without a transform for the procedure (identity, pairs, "
    "best-of-n data); orange: calibrated transforms."
)


def pictures(rows, loss_rows, ceiling_rows, head, kl):
    """Every picture that the rows allow.

    Args:
      rows: of `study_results.win_rates`.
      loss_rows: of `study_results.losses`.
      ceiling_rows: of `report.ceilings`.
      head: judge shown where one is shown: 'gold' if there is one.
      kl: KL of the pictures that show one.
    """
    made = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        level = [row for row in mine if row["kl"] == kl and row["judge"] == head]
        if any(row["procedure"] in COMPARED for row in level):
            made.append(comparison(level, [row for row in ceiling_rows if row["task"] == task], task, head, kl))
        made.append(win_rate_against_kl(mine, task, head))
        if judges_differ(mine):
            made.append(hacking(mine, task))
        made.append(robustness([row for row in loss_rows if row["task"] == task and row["judge"] == head], task))
    return made


def comparison(rows, ceiling_rows, task, judge, kl):
    """One panel a procedure: every method's win rate at one KL with its interval, and theory's identity and optimum."""
    panels = []
    for name in COMPARED:
        mine = sorted(_of(rows, procedure=name), key=lambda row: row["win_rate"])
        theory = next((row for row in ceiling_rows if row["procedure"] == name and row["kl"] == kl), None)
        if mine:
            draw = partial(_dots, rows=mine, theory=theory, title=name)
            panels.append(Panel(draw, (4.6, 1.3 + 0.27 * len(mine))))
    return Picture(
        name=f"comparison_{task}",
        title=f"{task}: win rate over the reference at a KL of {kl:g} nats, {judge} reward",
        caption=f"{KINDS} Bars: 95 % intervals over prompts and seeds of the whole pipeline. Lines: what "
        "theory says of identity (dotted) and of the certified optimum (dashed) for tables of K rollouts. *: missed its KL. "
        "Arrow: further left than the picture goes.",
        panels=panels,
        columns=len(panels),
    )


def win_rate_against_kl(rows, task, judge):
    """One panel a procedure: pooled win rates at the KLs each method was trained for, with 95 % intervals."""
    rows = [row for row in rows if row["judge"] == judge]
    looks = style.looks(row["method"] for row in rows)
    if crowded := len(looks) > len(style.LOOKS):
        draw, legend, bars = _crowd, [], "the highest of each kind with its name and"
    else:
        draw, bars = partial(_curves, looks=looks), "bars:"
        legend = [Panel(partial(_legend, looks=looks), (4.0, 3.3))]
    names = list(dict.fromkeys(row["procedure"] for row in rows))
    panels = [Panel(partial(draw, rows=_of(rows, procedure=name), title=name), (4.0, 3.3)) for name in names] + legend
    return Picture(
        name=f"win_rate_{task}",
        title=f"{task}: win rate over the reference against KL, {judge} reward",
        caption=f"Each point is a policy trained for that KL, pooled over seeds of the whole pipeline; {bars} 95 % intervals over "
        f"prompts and seeds.{f' {KINDS} What is below {FLOOR:g} is not shown.' if crowded else ''}",
        panels=panels,
        columns=min(4, len(panels)),
    )


def hacking(rows, task):
    """Win rate of standard sampling against KL by both judges: the optimised reward rises, the true one may turn down."""
    looks = style.looks(row["method"] for row in rows)
    first = "standard" if any(row["procedure"] == "standard" for row in rows) else rows[0]["procedure"]
    panels = [
        Panel(
            partial(_curves, rows=_of(rows, procedure=first, judge=judge), looks=looks, title=f"{judge} reward"),
            (4.6, 3.6),
        )
        for judge in dict.fromkeys(row["judge"] for row in rows)
    ]
    return Picture(
        name=f"hacking_{task}",
        title=f"{task}: {first} win rate, the reward that was optimised and the other judge",
        caption="Reward hacking shows as a curve of the other judge that turns down while that of the training reward rises.",
        panels=[*panels, Panel(partial(_legend, looks=looks), (3.0, 3.6))],
        columns=len(panels) + 1,
    )


def robustness(rows, task):
    """Method down, deployed procedure across: win rate lost to the best method for that procedure."""
    methods = style.order(row["method"] for row in rows)
    names = list(dict.fromkeys(row["procedure"] for row in rows))
    found = {(row["method"], row["procedure"]): row["loss"] for row in rows}
    matrix = np.array([[found.get((method, name), np.nan) for name in names] for method in methods]).reshape(
        len(methods), len(names)
    )
    size = (1.9 + 0.85 * len(names), 1.2 + 0.34 * len(methods))
    return Picture(
        name=f"robustness_{task}",
        title=f"{task}: win rate lost to the best method",
        caption="Rows: what was trained; columns: how it is deployed. 0 is the best method for that procedure.",
        panels=[Panel(partial(_matrix, matrix=matrix, methods=methods, names=names), size)],
    )


def judges_differ(rows):
    """Whether there is a second judge that is not the training reward itself."""
    told = {}
    for row in rows:
        told.setdefault((row["method"], row["kl"], row["procedure"]), set()).add(row["win_rate"])
    return any(len(values) > 1 for values in told.values())


def _of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _dots(axes, rows, theory, title):
    for place, row in enumerate(rows):
        color = style.LOOKS[kind(row["method"])].color
        if row["win_rate"] < FLOOR:
            where = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8.5, "color": color}
            axes.text(0.015, place, f"← {row['win_rate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", **where)
            continue
        axes.hlines(place, row["low"], row["high"], color=color, linewidth=2.4, alpha=0.45)
        axes.plot([row["win_rate"]], [place], color=color, marker="o", markersize=6)
    if theory is not None:
        for key, line in (("identity_table", ":"), ("optimum_table", "--")):
            axes.axvline(theory[key], color=style.MUTED, linestyle=line, linewidth=1.1)
    labels = [style.label(row["method"]) + "*" * row["off_target"] for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_title(title)
    axes.set_xlabel("win rate over the reference", fontsize=8)


def kind(method):
    """The look of a method's kind: uncalibrated, by ranks alone, or a transform made for a procedure."""
    if is_uncalibrated(method):
        return "raw"
    return "exponential+" if style.family(method).startswith(("exponential", "optimal", "log")) else "identity"


def _curves(axes, rows, looks, title):
    for method, look in looks.items():
        curve = _curve(rows, method)
        if curve:
            _line(axes, curve, look.color, marker=look.marker, markersize=5, linewidth=1.4)
    _against_kl(axes, rows, title)


def _crowd(axes, rows, title):
    """More curves than there are looks: all thin, in the colours of their kinds, and the highest of each kind by name."""
    curves = {method: _curve(rows, method) for method in style.order(row["method"] for row in rows)}
    # A method that was not trained for all KLs has no mean that can be compared.
    longest = max(map(len, curves.values()))
    whole = [method for method, curve in curves.items() if len(curve) == longest]
    rising = sorted(whole, key=lambda method: np.mean([row["win_rate"] for row in curves[method]]))
    highest = {kind(method): method for method in rising}.values()  # of a kind the last, that is the highest, stays
    for method, curve in curves.items():
        color = style.LOOKS[kind(method)].color
        if method in highest:
            look = {"marker": "o", "markersize": 4.5, "linewidth": 1.8, "zorder": 3, "label": style.label(method)}
            _line(axes, curve, color, **look)
        else:
            x, y = ([row[key] for row in curve] for key in ("kl_measured", "win_rate"))
            axes.plot(x, y, color=color, linewidth=1.0, alpha=0.35)
    _against_kl(axes, rows, title)
    axes.set_ylim(bottom=max(FLOOR, axes.get_ylim()[0]))
    axes.legend(fontsize=7.5, loc="lower right")


def _curve(rows, method):
    return sorted(_of(rows, method=method), key=lambda row: row["kl_measured"])


def _line(axes, curve, color, **look):
    x, y = ([row[key] for row in curve] for key in ("kl_measured", "win_rate"))
    axes.vlines(x, [row["low"] for row in curve], [row["high"] for row in curve], color=color, alpha=0.4)
    axes.plot(x, y, color=color, **look)


def _against_kl(axes, rows, title):
    axes.set_xlim(0, 1.06 * max(row["kl_measured"] for row in rows))
    axes.set_title(title)
    axes.set_xlabel(style.KL_LABEL, fontsize=8)
    axes.set_ylabel("win rate over the reference", fontsize=8)


def _legend(axes, looks):
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=look.color, marker=look.marker, label=style.label(method))
        for method, look in looks.items()
    ]
    axes.set_axis_off()
    axes.legend(handles=handles, loc="center left", fontsize=9)


def _matrix(axes, matrix, methods, names):
    axes.imshow(matrix, cmap="Oranges", vmin=0.0, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(methods)), [style.label(method) for method in methods], fontsize=8)
    dark = 0.6 * np.nanmax(matrix) if matrix.size else 0.0
    for (row, column), value in np.ndenumerate(matrix):
        text = "–" if np.isnan(value) else f"{value:.3f}"
        axes.text(
            column, row, text, ha="center", va="center", fontsize=8, color=style.PAPER if value > dark else style.INK
        )

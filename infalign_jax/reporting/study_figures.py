"""The pictures of a study: win rate against KL, the robustness matrix, and what happens to the true reward as KL grows."""

from functools import partial

import numpy as np

from infalign_jax.reporting import style
from infalign_jax.reporting.picture import Panel, Picture

KL_LABEL = "KL from the reference (nats per sequence)"


def pictures(rows, loss_rows, head):
    """Every picture that the rows allow.

    Args:
      rows: of `study_results.win_rates`.
      loss_rows: of `study_results.losses`.
      head: judge shown where one is shown: 'gold' if there is one.
    """
    made = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        made.append(win_rate_against_kl(mine, task, head))
        if _judges_differ(mine):
            made.append(hacking(mine, task))
        made.append(robustness([row for row in loss_rows if row["task"] == task and row["judge"] == head], task))
    return made


def win_rate_against_kl(rows, task, judge):
    """One panel a procedure: pooled win rates at the KLs each method was trained for, with 95 % intervals."""
    rows = [row for row in rows if row["judge"] == judge]
    looks = style.looks(row["method"] for row in rows)
    names = list(dict.fromkeys(row["procedure"] for row in rows))
    panels = [
        Panel(partial(_curves, rows=_of(rows, procedure=name), looks=looks, title=name), (4.0, 3.3)) for name in names
    ]
    return Picture(
        name=f"win_rate_{task}",
        title=f"{task}: win rate over the reference against KL, {judge} reward",
        caption="Each point is a policy trained for that KL, pooled over seeds of the whole pipeline; bars: 95 % intervals over "
        "prompts and seeds.",
        panels=[*panels, Panel(partial(_legend, looks=looks), (4.0, 3.3))],
        columns=min(4, len(panels) + 1),
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


def _judges_differ(rows):
    """Whether there is a second judge that is not the training reward itself."""
    told = {}
    for row in rows:
        told.setdefault((row["method"], row["kl"], row["procedure"]), set()).add(row["win_rate"])
    return any(len(values) > 1 for values in told.values())


def _of(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _curves(axes, rows, looks, title):
    for method, look in looks.items():
        curve = sorted(_of(rows, method=method), key=lambda row: row["kl_measured"])
        if curve:
            x, y = ([row[key] for row in curve] for key in ("kl_measured", "win_rate"))
            axes.vlines(x, [row["low"] for row in curve], [row["high"] for row in curve], color=look.color, alpha=0.4)
            axes.plot(x, y, color=look.color, marker=look.marker, markersize=5, linewidth=1.4)
    axes.set_xlim(0, 1.06 * max(row["kl_measured"] for row in rows))
    axes.set_title(title)
    axes.set_xlabel(KL_LABEL, fontsize=8)
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

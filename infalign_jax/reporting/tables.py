"""Plain-text tables for the terminal: win rates with intervals, and paired differences."""

import re
import shutil

from infalign_jax.reporting import records, style

ABOVE, BELOW, INCLUDES = "above 0", "below 0", "includes 0"
DASH = "–"


def verdict(row):
    """'above 0', 'below 0' or 'includes 0': where the 95 % interval [low, high] of a difference lies."""
    return ABOVE if row["low"] > 0 else BELOW if row["high"] < 0 else INCLUDES


def align(header, rows, indent=""):
    """Text table with columns as wide as their widest cell: first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells):
        first, *rest = zip(cells, widths, strict=True)
        return (indent + "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])).rstrip()

    rule = indent + "  ".join("─" * width for width in widths)
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def interval(row, value="win_rate", sign=""):
    """'0.849 [0.837, 0.861]': a value with its 95 % interval; with the sign '+', as differences have it, '+0.049 [...]'."""
    return f"{row[value]:{sign}.3f} {bounds(row, sign)}"


def bounds(row, sign=""):
    """'[0.837, 0.861]': the 95 % interval of a row."""
    return f"[{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"


def win_rate_cells(results, judge, cell=interval):
    """(header, rows) of strings: methods down, procedures across, `cell(row)` in the cells, KL ± se first."""
    rows = records.select(results, judge=judge)
    procedures = sorted(records.unique(rows, records.procedure_key), key=records.procedure_position)
    header = ["method", "KL ± se (nats)", *(records.procedure_title(key) for key in procedures)]
    table = []
    for method in style.order(row["method"] for row in rows):
        mine = records.select(rows, method=method)
        cells = {records.procedure_key(row): cell(row) for row in mine}
        kl = f"{mine[0]['kl']:.3f} ± {mine[0]['kl_se']:.3f}"
        table.append([method, kl, *(cells.get(key, DASH) for key in procedures)])
    return header, table


def win_rates(results, width=None):
    """The win-rate table of every judge as text, folded into blocks that fit `width` characters (the terminal's).

    A win rate is the probability that the procedure applied to the method's policy beats the same procedure applied to
    the reference policy; brackets hold the 95 % interval over prompts.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    blocks = []
    for judge in records.unique(results, "judge"):
        header, rows = win_rate_cells(results, judge, _compact)
        blocks.append(f"Win rate against the reference, judged by the {judge} reward [95 % interval]")
        for columns in _fold(header, rows, width):
            picked = [[row[column] for column in columns] for row in [header, *rows]]
            blocks.append(align(picked[0], picked[1:]))
    return "\n\n".join(blocks)


def _compact(row):
    """'.849 [.837, .861]': the same in a third less of a terminal's line."""
    return re.sub(r"\b0\.", ".", interval(row))


def _fold(header, rows, width):
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    block, blocks = [0, 1], []
    for column in range(2, len(header)):
        if len(block) > 2 and sum(widths[index] + 2 for index in [*block, column]) - 2 > width:
            blocks.append(block)
            block = [0, 1]
        block.append(column)
    return [*blocks, block]


def differences(comparisons):
    """The paired differences of win rates as text, '' of none; the last column says whether the interval excludes 0."""
    if not comparisons:
        return ""
    ordered = sorted(comparisons, key=lambda row: -records.procedure_position(records.procedure_key(row)))
    rows = [
        [
            f"{row['method']} − {row['baseline']}",
            records.procedure_title(records.procedure_key(row)),
            row["judge"],
            f"{row['difference']:+.3f}",
            bounds(row, "+"),
            verdict(row),
        ]
        for row in ordered
    ]
    header = ["methods", "procedure", "judge", "difference", "95 % interval", "verdict"]
    return "Paired differences of win rates on the same prompts\n\n" + align(header, rows)

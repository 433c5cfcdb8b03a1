"""report.html: the whole evaluation in one file that opens anywhere and loads nothing.

Everything that comes from data (prompts, completions, names, config) goes through `text`; a content security policy
forbids scripts and connections besides, so that nothing a model writes can do more than be read.
"""

import json
from html import escape

from etils import epath

from infalign_jax.reporting import figures, picture, records, style, tables
from infalign_jax.reporting.progress import duration, number
from infalign_jax.reporting.stylesheet import css
from infalign_jax.reporting.visible import visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
MOST_PROMPTS_OPEN = 6


def text(value):
    """Any value as safe HTML text: markup escaped, control and direction marks visible, lone surrogates replaced."""
    return escape(visible(value, keep="\n\t"), quote=True)


def write_report(folder):
    """Reads the evaluation in `folder` (records.read) and writes `folder`/report.html atomically; returns its path."""
    folder = epath.Path(folder)
    page = render(records.read(folder))
    path = folder / "report.html"
    spare = folder / f"{path.name}.new"
    spare.write_bytes(page.encode())
    spare.replace(path)
    return path


def render(evaluation):
    """The page as text."""
    _headline_rows(evaluation)  # before anything is drawn: refuse a headline without rows
    version = text(evaluation.summary["versions"].get("infalign-jax", ""))
    sections = [(name, title, body) for name, title, body in _sections(evaluation) if body]
    links = "".join(f'<a href="#{name}">{style.capitalized(name).replace("-", " ")}</a>' for name, _, _ in sections)
    bodies = "\n".join(f'<section id="{name}"><h2>{title}</h2>\n{body}\n</section>' for name, title, body in sections)
    return picture.share_glyphs(f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>InfAlign evaluation report</title>
<style>
{css()}
</style>
</head>
<body>
<header><h1>Inference-aware alignment: what was measured</h1>
<p class="lead">{_lead(evaluation)}</p>
{_tiles(evaluation)}</header>
<nav aria-label="Sections">{links}</nav>
<main>
{bodies}
</main>
<footer>Written by infalign {version}. Method: InfAlign, arXiv 2412.19792.</footer>
</body>
</html>
""")


def _sections(evaluation):
    drawn = {item.name: item for item in figures.pictures(evaluation)}
    head = records.headline_key(evaluation)[1]
    facets = [item for name, item in drawn.items() if name.startswith("win_rate_against_kl")]
    return [
        ("result", "The result", _figure(drawn["headline"])),
        ("win-rates", "Win rates at the target KL", _win_rates(evaluation, head)),
        ("differences", "Paired differences", _differences(evaluation)),
        ("procedures", "Over all procedures", _figure(drawn["win_rate_by_procedure"])),
        ("KL", "Where the KL goes", _figure(drawn.get("kl_by_group"))),
        ("calibration", "Is the calibration right?", _figure(drawn.get("reliability"))),
        ("frontier", "Win rate against KL", "".join(map(_figure, facets[:1])) + "".join(map(_folded, facets[1:]))),
        ("samples", "Sampled responses", _samples(evaluation)),
        ("run", "The run", _run(evaluation)),
    ]


def _headline_rows(evaluation):
    key, judge = records.headline_key(evaluation)
    rows = records.select(evaluation.results, procedure=key, judge=judge)
    if not rows:
        raise ValueError(
            f"results.json has no rows for the headline {records.procedure_title(key)} under the {judge} judge of "
            "summary.json"
        )
    best = max(rows, key=lambda row: row["win_rate"])
    against = records.select(evaluation.comparisons, procedure=key, judge=judge, method=best["method"])
    return best, sorted(against, key=lambda row: row["difference"])


def _lead(evaluation):
    (key, judge), (best, against) = records.headline_key(evaluation), _headline_rows(evaluation)
    title, judge = records.procedure_title(key), text(figures.judge_title(judge))
    sentence = (
        f"Used through {title}, the policy aligned with {_method(best['method'])} beats the reference policy "
        "(used the same way) with "
        f"probability <b>{text(tables.interval(best))}</b>, judged by the {judge}, the highest of "
        f"{_count(evaluation)} methods at KL "
        f"{evaluation.summary['target_kl']:g} nats. "
    )
    parts = [
        f"{row['difference']:+.3f} over {_method(row['baseline'])} {tables.bounds(row, '+')}"
        + (
            ""
            if tables.verdict(row) == tables.ABOVE
            else f" (the interval {tables.verdict(row).replace('below', 'lies below')})"
        )
        for row in against
    ]
    return sentence + ("On the same prompts: " + "; ".join(parts) + "." if parts else "")


def _count(evaluation):
    return len(records.unique(evaluation.results, "method"))


def _method(name):
    return f"<code>{text(name)}</code>"


def _dot(evaluation, method):
    methods = style.looks(row["method"] for row in evaluation.results)
    variable = picture.theme_variables()[methods[method].color] if method in methods else "--muted"
    return f'<span class="dot" style="background:var({variable})"></span>', variable


def _tiles(evaluation):
    best, against = _headline_rows(evaluation)
    key = records.headline_key(evaluation)[0]
    tiles = [(f"{best['win_rate']:.3f}", f"{records.procedure_title(key)} win rate of {best['method']}")]
    tiles += [(f"{row['difference']:+.3f}", f"over {row['baseline']} {tables.bounds(row, '+')}") for row in against[:1]]
    spent = [row["kl"] for row in evaluation.results]
    tiles.append(
        (f"{evaluation.summary['target_kl']:g} nats", f"target KL; spent: {min(spent):.3f} to {max(spent):.3f}")
    )
    stages = evaluation.summary["stages"]
    if stages:
        tiles.append((duration(sum(stage["seconds"] for stage in stages)), f"run time of {len(stages)} stages"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{text(b)}</b><span>{text(s)}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _figure(item):
    if item is None:
        return ""
    drawn = [
        f"<div>{picture.inline_svg(figure, f'{item.name}-{index}', text(item.title) + f', panel {index + 1}')}</div>"
        for index, figure in enumerate(item.figures())
    ]
    least = 440 if item.columns < 3 else 250
    caption = f"<figcaption>{text(item.caption)}</figcaption>"
    return f'<figure><div class="panels" style="--least:{least}px">{"".join(drawn)}</div>{caption}</figure>'


def _folded(item):
    return f"<details><summary>{text(item.title)}</summary>{_figure(item)}</details>"


def _table(header, rows, kind=""):
    """A table whose cells are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _win_rates(evaluation, head):
    parts = []
    for judge in sorted(records.unique(evaluation.results, "judge"), key=lambda judge: judge != head):
        header, rows = tables.win_rate_cells(evaluation.results, judge)
        best = [
            max(row[column].partition(" ")[0] for row in rows if row[column] != tables.DASH)
            for column in range(len(header))
        ]
        cells = []
        for row in rows:
            named = [_dot(evaluation, row[0])[0] + text(row[0])]
            for column in range(1, len(row)):
                value, _, interval = row[column].partition(" ")
                mark = ' class="best"' if column > 1 and value == best[column] else ""
                named.append(f"<td{mark}>{text(value)}<small>{text(interval)}</small></td>")
            cells.append(named)
        parts.append(f"<h3>Judged by the {text(figures.judge_title(judge))}</h3>" + _table(map(text, header), cells))
    note = (
        "Probability that the procedure on the aligned policy beats the same procedure on the reference (ties "
        "count half). Brackets: 95 % "
        "interval by bootstrap over prompts. Bold: the highest of its column, whether or not the lead is larger "
        "than its interval."
    )
    return f'<p class="note">{note}</p>' + "".join(parts)


def _differences(evaluation):
    if not evaluation.comparisons:
        return ""
    key, judge = records.headline_key(evaluation)
    kinds = records.unique(evaluation.comparisons, lambda row: (records.procedure_key(row), row["judge"]))
    kinds = sorted(kinds, key=lambda kind: (kind[1] != judge, -records.procedure_position(kind[0])))
    parts = {kind: _difference_table(evaluation.comparisons, *kind) for kind in kinds}
    first = parts.pop((key, judge), "")
    rest = (
        f"<details><summary>Other procedures and judges</summary>{''.join(parts.values())}</details>" if parts else ""
    )
    note = (
        "Difference of win rates on the same prompts; where its 95 % interval lies above 0, the first method is better. "
        "The better method of each pair stands first."
    )
    return f'<p class="note">{note}</p>{first}{rest}'


def _difference_table(comparisons, key, judge):
    """The pairs of methods under one procedure and judge, largest difference first, and none twice."""
    rows = {(row["method"], row["baseline"]): row for row in records.select(comparisons, procedure=key, judge=judge)}
    mirrored = {pair for pair, row in rows.items() if (row["difference"], pair) < (_turned(rows, pair), pair[::-1])}
    shown = sorted((row for pair, row in rows.items() if pair not in mirrored), key=lambda row: -row["difference"])
    cells = []
    for row in shown:
        kind = " yes" if tables.verdict(row) == tables.ABOVE else ""
        verdict = f'<span class="verdict{kind}">{text(tables.verdict(row))}</span>'
        pair = f"{text(row['method'])} − {text(row['baseline'])}"
        cells.append([pair, f"{row['difference']:+.3f}", tables.bounds(row, "+"), verdict])
    title = f"{records.procedure_title(key)}, judged by the {figures.judge_title(judge)}"
    header = ["methods", "difference", "95 % interval", "verdict"]
    return f"<h3>{text(style.capitalized(title))}</h3>" + _table(header, cells, "differences")


def _turned(rows, pair):
    """The difference of the same two methods the other way round; below all others where there is none."""
    return rows[pair[::-1]]["difference"] if pair[::-1] in rows else -2.0


def _samples(evaluation):
    if not evaluation.samples:
        return ""
    blocks = []
    for prompt in records.unique(evaluation.samples, "prompt"):
        rows = "".join(_sample(evaluation, row) for row in records.select(evaluation.samples, prompt=prompt))
        blocks.append(f'<div class="prompt" dir="auto">{text(prompt)}</div>{rows}')
    note = "The bar is the calibrated reward u: its quantile among the reference policy's own rewards for the prompt."
    rest = blocks[MOST_PROMPTS_OPEN:]
    more = f"<details><summary>{len(rest)} more prompts</summary>{''.join(rest)}</details>" if rest else ""
    return f'<p class="note">{note}</p>' + "".join(blocks[:MOST_PROMPTS_OPEN]) + more


def _sample(evaluation, row):
    dot, variable = _dot(evaluation, row["method"])
    u = min(1.0, max(0.0, float(row["calibrated"])))
    cut = ' <span class="cut">cut at the limit</span>' if row["truncated"] else ""
    judged = "" if row["judge_reward"] is None else f" · judge {row['judge_reward']:.2f}"
    completion = text(row["completion"]) or '<span class="muted">(empty)</span>'
    return (
        f'<div class="sample"><div class="who">{dot}{text(row["method"])}</div>'
        f'<div class="completion" dir="auto">{completion}{cut}</div>'
        f'<div class="meta"><div class="meter"><i style="width:{100 * u:.1f}%;background:var({variable})"></i></div>'
        f"u {row['calibrated']:.3f} · reward {row['reward']:.2f}{judged}</div></div>"
    )


def _run(evaluation):
    summary = evaluation.summary
    parts = []
    if summary["notes"]:
        parts.append("<ul>" + "".join(f"<li>{text(note)}</li>" for note in summary["notes"]) + "</ul>")
    stages = [
        [
            text(stage["name"]),
            duration(stage["seconds"]),
            text(" · ".join(f"{k} {number(v)}" for k, v in stage["numbers"].items())),
        ]
        for stage in summary["stages"]
    ]
    if stages:
        parts.append("<h3>Stages</h3>" + _table(["stage", "time", "numbers"], stages, "last-left"))
    if summary["truncated_fraction"]:
        rows = [[text(name), f"{value:.1%}"] for name, value in summary["truncated_fraction"].items()]
        parts.append("<h3>Responses cut at the length limit</h3>" + _table(["policy", "fraction"], rows))
    versions = [[text(name), text(value)] for name, value in summary["versions"].items()]
    parts.append("<h3>Versions</h3>" + _table(["package", "version"], versions, "key"))
    config = json.dumps(summary["config"], indent=2, ensure_ascii=False, default=str)
    parts.append(f"<details><summary>The whole config</summary><pre>{text(config)}</pre></details>")
    return "".join(parts)

"""Reports: what is shown is what was measured, and nothing a model writes can harm a page."""

import itertools
import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from scipy import optimize

from infalign_jax.reporting import figures, html, picture, records, style, tables
from infalign_jax.reporting.calibration_figures import expected_counts
from tests import made_up

ALL_METHODS = ["raw", "raw_group_std", "identity", "log", "exponential(10)", "exponential(-5)", "optimal(best_of(8))"]
HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" \x00\x1b[31m \u202e ünï 漢字 🙂'


def write(evaluation, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in evaluation._asdict().items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="module")
def evaluation():
    whole = made_up.evaluation(["raw", "identity", "exponential(10)"])
    return whole._replace(frontier=[row for row in whole.frontier if row["n"] in (1, 4)])


@pytest.fixture(scope="module")
def hostile_page():
    """A report of data that attacks the page from every field a person or a model can write."""
    clean = made_up.evaluation(["identity", HOSTILE])
    judge = "gold" + HOSTILE
    rows = {
        name: [{**row, "judge": judge} if row.get("judge") == "gold" else row for row in getattr(clean, name)]
        for name in ("results", "frontier")
    }
    comparison = {
        "method": HOSTILE,
        "baseline": "identity",
        "procedure": "best_of",
        "n": 4,
        "judge": judge,
        "difference": 0.0,
        "low": -0.1,
        "high": 0.1,
    }
    groups = [{**row, "group": row["group"] + HOSTILE} for row in clean.kl_by_group]
    samples = [{**row, "prompt": HOSTILE, "completion": HOSTILE + "\ud800"} for row in clean.samples]
    calibration = {**clean.calibration, "note": HOSTILE, "counts_by_group": {HOSTILE: clean.calibration["counts"]}}
    summary = {
        **clean.summary,
        "notes": [HOSTILE],
        "config": {HOSTILE: HOSTILE},
        "versions": {HOSTILE: HOSTILE, "infalign-jax": HOSTILE},
    }
    summary |= {
        "stages": [{"name": HOSTILE, "seconds": 3.0, "numbers": {HOSTILE: HOSTILE}}],
        "truncated_fraction": {HOSTILE: 0.5},
    }
    summary["headline"] = {"procedure": "best_of", "n": 4, "judge": judge}
    changed = rows | {
        "comparisons": [comparison],
        "kl_by_group": groups,
        "samples": samples,
        "calibration": calibration,
        "summary": summary,
    }
    return html.render(clean._replace(**changed))


class Reader(HTMLParser):
    """What a browser would see: tags, attributes and the text between."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = set(), [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


def test_hostile_text_is_only_text(hostile_page):
    page = Reader(hostile_page)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "foreignobject"}
    for name, value in page.attributes:
        assert not name.startswith("on"), (name, value)
        assert name not in ("src", "srcset", "action", "srcdoc")
        assert name not in ("href", "xlink:href") or value.startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", hostile_page))
    shown = HOSTILE.replace("\x00", "␀").replace("\x1b", "␛").replace("\u202e", "⟨U+202E⟩")
    for where in (
        shown,
        shown + "?",
    ):  # method, group, note, config and so on; completion with its lone surrogate replaced
        assert where in page.words
    assert "\x00" not in hostile_page and "\x1b" not in hostile_page


def test_page_is_one_file_with_sound_references(hostile_page):
    attributes = Reader(hostile_page).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in attributes:
        if name in ("href", "xlink:href"):
            assert value[1:] in ids
    for target in re.findall(r"url\(#([^)]*)\)", hostile_page):
        assert target in ids
    addresses = set(re.findall(r"https?://[^\"'\s<]+", hostile_page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert dict(attributes)["content"] is not None and html.POLICY in hostile_page.replace("&#x27;", "'")


def test_page_colours_follow_the_theme(hostile_page):
    svgs = re.findall(r"<svg.*?</svg>", hostile_page, flags=re.DOTALL)
    assert len(svgs) > 10
    assert not any(re.search(r"#[0-9a-fA-F]{6}\b", svg) for svg in svgs)
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", hostile_page))
    light, dark = hostile_page.split("prefers-color-scheme:dark", 1)
    assert all(f"{name}:" in light and f"{name}:" in dark.split("}}")[0] for name in used - {"--least"})


def test_report_is_written_whole_and_shows_every_number(evaluation, tmp_path):
    folder = write(evaluation, tmp_path / "evaluate")
    path = html.write_report(folder)
    assert path == folder / "report.html" and not list(folder.glob("*.new"))
    words = " ".join(Reader(path.read_text(encoding="utf-8")).words)
    for row in evaluation.results:
        assert f"{row['win_rate']:.3f}" in words and f"[{row['low']:.3f}, {row['high']:.3f}]" in words
    for row in evaluation.comparisons:
        assert f"{row['difference']:+.3f}" in words
    for row in evaluation.samples:
        assert row["prompt"] in words and row["completion"] in words and f"u {row['calibrated']:.3f}" in words
    assert html.render(evaluation) == path.read_text(encoding="utf-8")  # nothing in it depends on the moment


def test_lead_claims_no_more_than_the_interval(evaluation):
    best = max(
        records.select(evaluation.results, procedure=("best_of", 4), judge="gold"), key=lambda row: row["win_rate"]
    )
    row = {**evaluation.comparisons[0], "method": best["method"], "difference": 0.004, "low": -0.002, "high": 0.01}
    assert "the interval includes 0" in html._lead(evaluation._replace(comparisons=[row]))
    assert "includes 0" not in html._lead(evaluation._replace(comparisons=[{**row, "low": 0.001}]))


def test_a_pair_of_methods_stands_once_the_better_first(evaluation):
    """Evaluations hold every pair both ways round."""
    turned = [
        {**row, "method": row["baseline"], "baseline": row["method"], "difference": -row["difference"],
         "low": -row["high"], "high": -row["low"]}
        for row in evaluation.comparisons
    ]  # fmt: skip
    page = html._differences(evaluation._replace(comparisons=[*turned, *evaluation.comparisons]))
    shown = re.findall(r"<td>([^<]* − [^<]*)</td><td>([+-][0-9.]+)</td>", page)
    assert len(shown) == len(evaluation.comparisons) and all(value.startswith("+") for _, value in shown)
    values = {abs(round(row["difference"], 3)) for row in evaluation.comparisons}
    assert {float(value) for _, value in shown} == values
    first, rest = page.split("<details>")
    assert first.count("<h3>") == 1 and "Best-of-4, judged by the gold reward" in first and "Worst-of-4" in rest
    tie = {**evaluation.comparisons[0], "difference": 0.0}
    both = [tie, {**tie, "method": tie["baseline"], "baseline": tie["method"], "difference": -0.0}]
    assert html._differences(evaluation._replace(comparisons=both)).count(" − ") == 1


def test_sections_without_data_are_left_out(evaluation):
    empty = {"counts": [], "counts_by_group": {}, "bins": [], "expected": 0, "note": "", "K": 4}
    bare = evaluation._replace(comparisons=[], frontier=[], theory=[], kl_by_group=[], samples=[], calibration=empty)
    page = html.render(bare)
    assert 'id="result"' in page and 'id="win-rates"' in page
    assert not any(f'id="{name}"' in page for name in ("differences", "KL", "calibration", "frontier", "samples"))


def test_headline_draws_the_numbers_it_is_given(evaluation):
    figure = figures.headline(evaluation).figure()
    curves, points = figure.axes
    rows = records.select(evaluation.results, procedure=("best_of", 4), judge="gold")
    drawn = {tuple(np.round(mark.get_offsets()[0], 9)) for mark in curves.collections if len(mark.get_offsets()) == 1}
    assert {(round(row["kl"], 9), round(row["win_rate"], 9)) for row in rows} <= drawn
    lines = [line.get_xydata() for line in curves.lines]
    for method in ("raw", "identity", "exponential(10)"):
        curve = [
            (row["kl"], row["win_rate"])
            for row in records.select(evaluation.frontier, procedure=("best_of", 4), judge="gold", method=method)
        ]
        assert any(line.shape == (len(curve), 2) and np.allclose(line, curve) for line in lines)
    assert [label.get_text() for label in points.get_yticklabels()] == ["raw", "identity", "exponential(10)"]
    assert curves.get_xlabel() == style.KL_LABEL and points.get_title(loc="left") == "At KL 0.5 nats"


def test_seven_methods_stay_readable():
    for item in figures.pictures(made_up.evaluation(ALL_METHODS))[:3]:
        figure = item.figure()
        figure.draw_without_rendering()
        width, height = figure.get_size_inches() * figure.dpi
        for axes in figure.axes:
            boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
            assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes), item.name
            overlapping = [
                pair
                for pair in itertools.combinations(boxes, 2)
                if pair[0].shrunk(0.98, 0.9).overlaps(pair[1].shrunk(0.98, 0.9))
            ]
            assert not overlapping, item.name


def test_drawing_changes_nothing_global_and_takes_any_name(evaluation, tmp_path):
    before = dict(matplotlib.rcParams)
    strange = [{**row, "group": "cost $5 to $x_{"} for row in evaluation.kl_by_group[:3]]
    (path,) = picture.save([figures.kl_by_group(evaluation._replace(kl_by_group=strange))], tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG") and dict(matplotlib.rcParams) == before


# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as seen with protanopia, deuteranopia, tritanopia.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def _linear(color):
    rgb = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
        linear, 0, 1
    )
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("theme", ["color", "dark"])
def test_colours_stay_apart(deficiency, theme):
    looks = list(style.looks(ALL_METHODS).values())
    seen = [_lab(np.array(DEFICIENCIES[deficiency]) @ _linear(getattr(look, theme))) for look in looks]
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert least > 11, least  # CIE76; about 2 is the smallest difference people notice
    assert len({look.marker for look in style.LOOKS.values()}) == len(style.LOOKS)


def test_looks_are_one_a_method():
    many = [*ALL_METHODS, "exponential(5)", "exponential(-10)"]
    chosen = style.looks(many)
    assert list(chosen) == style.order(many) and len({look.marker for look in chosen.values()}) == 9
    assert style.looks(ALL_METHODS[:3])["identity"] == chosen["identity"]


def test_spread_is_the_least_squares_solution():
    rng = np.random.default_rng(0)
    for _ in range(5):
        wanted = rng.uniform(size=6)
        ranked = np.argsort(wanted)
        moved = np.array(picture.spread(wanted.tolist(), 0.1))
        assert np.all(np.diff(moved[ranked]) >= 0.1 - 1e-12)
        apart = {"type": "ineq", "fun": lambda x, ranked=ranked: np.diff(x[ranked]) - 0.1}
        best = optimize.minimize(
            lambda x, wanted=wanted: np.sum((x - wanted) ** 2), wanted, constraints=[apart], method="SLSQP", tol=1e-12
        )
        np.testing.assert_allclose(moved, best.x, atol=1e-4)


def test_expected_counts_are_the_law_of_a_table():
    rng = np.random.default_rng(1)
    K, draws, bins = 10, 40_000, [0, 0.25, 0.5, 0.75, 1]
    table, new = rng.normal(size=(draws, K)), rng.normal(size=(draws, 1))
    seen, _ = np.histogram((table < new).mean(axis=1), bins)
    expected = expected_counts(bins, draws, K)
    assert expected.sum() == pytest.approx(draws)
    assert np.all(np.abs(seen - expected) < 5 * np.sqrt(expected))
    assert abs(seen[-1] - draws / 4) > 5 * np.sqrt(draws / 4)  # the uniform law would call this table wrong


def test_terminal_table_is_aligned_and_fits(evaluation):
    lines = tables.win_rates(evaluation.results, width=90).splitlines()
    assert max(map(len, lines)) <= 90
    row = records.select(evaluation.results, procedure=("worst_of", 4), judge="gold", method="identity")[0]
    assert any(line.startswith("identity") and f"{row['win_rate']:.3f}"[1:] in line for line in lines)
    for title in ("standard", "best-of-8", "worst-of-8"):
        assert sum(title in line for line in lines) == 2  # once a judge
    rules = [index for index, line in enumerate(lines) if line.startswith("─")]
    for index in rules:
        assert len(lines[index]) == len(lines[index - 1]) == len(lines[index + 1])


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.001, 0.1, "above 0"), (-0.1, -0.001, "below 0"), (-0.1, 0.1, "includes 0"), (0, 0.1, "includes 0")],
)
def test_differences_say_where_zero_lies(evaluation, low, high, word):
    row = {**evaluation.comparisons[0], "low": low, "high": high}
    assert tables.differences([row]).splitlines()[-1].endswith(word)


def test_of_a_single_method_there_are_no_differences():
    assert tables.differences([]) == ""


def _break(name, change):
    def apply(folder):
        path = folder / f"{name}.json"
        path.write_text(change(json.loads(path.read_text())))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "theory.json").unlink(), "theory.json does not exist"),
        (_break("results", lambda rows: "[{"), "results.json is not readable as JSON"),
        (_break("results", lambda rows: "[]"), "results.json holds no rows"),
        (_break("results", lambda rows: "{}"), "must be a list of rows, not dict"),
        (
            _break("frontier", lambda rows: json.dumps([{k: v for k, v in rows[0].items() if k != "alpha"}])),
            "row 0 has no alpha",
        ),
        (_break("results", lambda rows: json.dumps([rows[0] | {"kl": float("nan")}])), "kl of row 0 is nan"),
        (_break("results", lambda rows: json.dumps([rows[0] | {"low": None}])), "low of row 0 is null"),
        (
            _break("results", lambda rows: json.dumps([rows[0] | {"procedure": "mean_of"}])),
            "procedure of row 0 is 'mean_of'",
        ),
        (_break("summary", lambda value: json.dumps(value | {"headline": {}})), "headline has no procedure, n, judge"),
        (
            _break(
                "summary",
                lambda value: json.dumps(value | {"headline": {"procedure": "best_of", "n": 3, "judge": "gold"}}),
            ),
            "best-of-3",
        ),
    ],
)
def test_damaged_files_are_met_with_one_sentence(evaluation, tmp_path, damage, words):
    folder = write(evaluation, tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        html.write_report(folder)
    assert "\n" not in str(caught.value) and not (folder / "report.html").exists()

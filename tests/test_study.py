"""Studies: the grid and its bookkeeping, pooling and paired differences by hand, the report; and small studies that are run."""

import itertools
import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from configs import (
    study_hacking,
    study_hh,
    study_ledger,
    study_ledger_runs,
    study_long,
    study_quickstart,
    study_small,
    study_tones,
)
from infalign_jax import main, report, study
from infalign_jax.core import bootstrap
from infalign_jax.reporting import study_figures, study_results, style
from tests import study_tiny

ROOT = pathlib.Path(__file__).parent.parent


def fabricated(task, method, kl, seed, level, prompts=6):
    """The result of a cell whose win rates are `level` plus a little by prompt and seed."""
    cell = study.Cell(task, method, kl, seed)
    wins = (level + 0.01 * np.arange(prompts) + 0.002 * seed).tolist()
    return {
        **cell._asdict(),
        "name": cell.name,
        "status": "done",
        "learning_rate": 2e-3,
        "alpha": 1.0,
        "kl_measured": kl,
        "kl_P": [kl] * prompts,
        "groups": ["a"] * prompts,
        "win_rates": {
            "train": {"standard": wins, "best_of(4)": wins},
            "gold": {"standard": (np.array(wins) - 0.1).tolist(), "best_of(4)": wins},
        },
        "rewards": {"train": 1.0 + kl, "gold": 1.0 - seed},
        "reference_rewards": {"train": 0.25, "gold": 0.0},
        "rollouts": {"calibrate": 640, "align": 1280},
        "calibration_rollouts": 64,
        "seconds": {"sft": 4.0, "calibrate": 1.0, "align": 3.0, "cell": 5.0},
        "device": "cpu",
    }


def write(folder, cells):
    (folder / "cells").mkdir(parents=True)
    for cell in cells:
        (folder / "cells" / f"{cell['name']}.json").write_text(json.dumps(cell))


@pytest.fixture
def cells():
    levels = {"raw": 0.6, "ppo": 0.62, "identity": 0.65, "exponential(10)": 0.7}
    made = [fabricated("tones", m, kl, s, level) for m, level in levels.items() for kl in (0.5, 1.0) for s in (0, 1)]
    broken = study.Cell("tones", "dpo", 0.5, 0)
    return [*made, {**broken._asdict(), "name": broken.name, "status": "failed", "error": "a | b"}]


STUDIES = [
    study_small,
    study_hacking,
    study_hh,
    study_quickstart,
    study_tones,
    study_long,
    study_ledger,
    study_ledger_runs,
]


@pytest.mark.parametrize("recipe_", STUDIES, ids=lambda r: r.__name__)
def test_studies_of_the_project_are_legal(recipe_):
    found = recipe_.get_config()
    study.check_keys(found)
    if any(method.startswith("optimal") for method in found.methods):  # solving for their transforms takes minutes
        found.methods, found.kls = ("raw", "ppo", "identity"), (0.5,)
    study.check(found)


def test_the_grid_is_every_combination_once_and_shards_split_it():
    found = study_tiny.get_config()
    found.learning_rates = (1e-3, 2e-3)
    cells = list(itertools.chain(*study.groups(found)))
    grid = {(c.task, c.method, c.kl, c.seed) for c in cells if c.rate is None}
    assert grid == {("tones", m, 0.05, s) for m in found.methods for s in (0, 1)}
    assert sum(c.rate is not None for c in cells) == 3 * 2 and len({c.name for c in cells}) == len(cells) == 12
    for group in study.groups(found):  # the search comes first, and in the same share
        assert [c.rate is None for c in group] == [False, False, True, True]
    assert study.shard("2/3") == (2, 3)
    for text in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(ValueError, match="--shard is"):
            study.shard(text)


def test_a_study_that_is_cut_short_is_balanced():
    found = study_tiny.get_config()
    found.learning_rates, found.kls, found.seeds = (1e-3, 2e-3), (1.0, 0.25), (7, 3)
    cells = study.in_order(found, study.groups(found))
    assert sorted(cells, key=str) == sorted(itertools.chain(*study.groups(found)), key=str)
    assert all(c.rate is not None for c in cells[:6]) and all(c.rate is None for c in cells[6:])
    blocks = [cells[i : i + 3] for i in range(6, 18, 3)]  # all three methods at one seed and KL
    assert [{(c.seed, c.kl) for c in block} for block in blocks] == [{(7, 1.0)}, {(3, 1.0)}, {(7, 0.25)}, {(3, 0.25)}]
    assert all([c.method for c in block] == list(found.methods) for block in blocks)


def test_bad_studies_are_refused_in_one_sentence(tmp_path):
    found = study_tiny.get_config()
    found.methods = ("raw", "exponentail(10)")
    with pytest.raises(ValueError, match=r"cell tones-exponentail_10-kl_0.05-seed_1: .*unknown transform"):
        study.check(found)
    found = study_tiny.get_config()
    found.procedures = ("best_of(64)",)
    with pytest.raises(ValueError, match=r"best_of\(64\) needs config.evaluate.samples of task tones"):
        study.check(found)
    found = study_tiny.get_config()
    found.tasks.tones.prefix_scorer.enabled = False
    with pytest.raises(ValueError, match=r"blockwise\(2,2\) needs config.prefix_scorer.enabled of task tones"):
        study.check(found)
    found.procedures = ("blockwise(2)",)
    with pytest.raises(ValueError, match="takes two whole numbers"):
        study.check(found)
    with pytest.raises(ValueError, match="names no study"):
        main.main(["study", f"--config={ROOT}/tests/tiny.py", f"--workdir={tmp_path}"])
    with pytest.raises(ValueError, match="needs --config and --workdir"):
        main.main(["study", f"--config={ROOT}/tests/study_tiny.py"])


def test_rewards_named_by_seed():
    config = study.cell_config(study_hacking.get_config(), study.Cell("rambling", "raw", 0.5, 2))
    assert config.reward.endswith("rambles_seed_2") and config.judge.endswith("brief_seed_2") and config.seed == 2


def test_a_study_goes_on_lists_failures_and_retries_them(tmp_path, monkeypatch, capsys):
    ran = []

    def run_cell(config, procedures, folder, cell):
        ran.append(cell.name)
        if cell.method == "ipo" and len(ran) < 8:
            raise ValueError("no luck")
        return {
            "win_rates": {"train": {"standard": [0.6, cell.rate or 0.1]}},
            "kl_measured": 0.05,
            "seen": list(procedures),
        }

    monkeypatch.setattr(study, "run_cell", run_cell)
    found = study_tiny.get_config()
    assert set(study.run(found, tmp_path, share=(1, 2))) == {f"tones-ipo-kl_0.05-seed_{s}" for s in (0, 1)}
    assert len(ran) == 4  # groups 1 and 3 of 3
    study.run(found, tmp_path)
    assert len(ran) == 6 and len(set(ran)) == 6
    assert len(study.run(found, tmp_path, retry=True)) == 1  # the seventh fails again, the eighth does not
    assert study.run(found, tmp_path, retry=True) == {} and len(ran) == 9
    found.seeds = (0, 1, 2)
    assert study.run(found, tmp_path) == {} and len(ran) == 12
    found.procedures = ("standard",)
    with pytest.raises(ValueError, match="holds another study"):
        study.run(found, tmp_path)
    with pytest.raises(ValueError, match=r"study\.json is a file; it must be a folder"):
        study.run(found, tmp_path / "study.json")


def test_cells_of_another_process_are_left_to_it_until_it_is_gone(tmp_path, monkeypatch):
    found = study_tiny.get_config()
    found.methods, found.learning_rates = ("raw", "ipo"), (1e-3, 2e-3)
    others = study.Cell("tones", "raw", 0.05, 100, 1e-3).name
    ran, elsewhere = [], [others] * 2

    def run_cell(config, procedures, folder, cell):
        if cell.name in elsewhere:
            elsewhere.remove(cell.name)
            raise ValueError("workdir x is in use by process 1 on y; wait until it ends")
        ran.append(cell)
        return {"win_rates": {"train": {"standard": [cell.rate or 0.5]}}, "kl_measured": 0.05}

    monkeypatch.setattr(study, "run_cell", run_cell)
    assert study.run(found, tmp_path) == {}
    names = [cell.name for cell in ran]
    assert len(names) == len(set(names)) == 8 and not elsewhere
    assert all(names.index(c.name) > names.index(others) for c in ran if c.method == "raw" and c.rate is None)
    assert names.index("tones-ipo-kl_0.05-seed_0") < names.index(others)  # it went on meanwhile


SEARCH = (1e-3, 2e-3, 4e-3)


@pytest.mark.parametrize(
    ("method", "rates", "best"),
    [
        ("raw", SEARCH, 2e-3),
        ("exponential(10)", SEARCH, 2e-3),
        ("optimal(best_of(4))", SEARCH, 4e-3),
        ("raw", (4e-3,), 4e-3),
        ("raw", (), 2.5e-3),
    ],
)
def test_the_learning_rate_is_chosen_by_the_search(method, rates, best, tmp_path, monkeypatch):
    standard, used = {1e-3: 0.6, 2e-3: 0.7, 4e-3: 0.5, 2.5e-3: 0.6}, []

    def run_cell(config, procedures, folder, cell):
        rate = config.align.learning_rate
        used.append((cell.rate, rate, config.seed))
        return {"win_rates": {"train": {"standard": [standard[rate]], "best_of(4)": [0.5 + 10 * rate]}}}

    monkeypatch.setattr(study, "run_cell", run_cell)
    monkeypatch.setattr(study, "check", lambda found: None)
    found = study_tiny.get_config()
    found.methods, found.seeds, found.learning_rates = (method,), (0,), rates
    found.tasks.tones.align.learning_rate = 2.5e-3
    study.run(found, tmp_path)
    search = [(rate, rate, 100) for rate in rates] if len(rates) > 1 else []
    assert used == [*search, (None, best, 0)]


def test_pooling_and_pairs_by_hand(tmp_path, cells):
    write(tmp_path, cells)
    found = study_results.groups(study_results.read([tmp_path]))
    assert len(found) == 8 and found["tones", "raw", 0.5].seeds == (0, 1)
    rows = study_results.win_rates(found)
    assert len(rows) == 8 * 2 * 2
    row = next(r for r in rows if r["method"] == "identity" and r["kl"] == 0.5)
    values = 0.65 + 0.01 * np.arange(6) + 0.002 * np.arange(2)[:, None]
    assert (row["win_rate"], row["low"], row["high"]) == pytest.approx(bootstrap.mean_interval(values))
    pairs = study_results.differences(found)
    assert {row["method"] for row in pairs} == {"identity", "exponential(10)"}
    best = [r for r in pairs if r["baseline"] == "best uncalibrated" and r["method"] == "exponential(10)"]
    assert {r["is"] for r in best} == {"ppo"} and len(best) == 2 * 2 * 2
    assert all(r["difference"] == pytest.approx(0.08) and r["low"] == pytest.approx(0.08) for r in best)
    lost = {(r["method"], r["judge"], r["procedure"]): r["loss"] for r in study_results.losses(rows, 0.5)}
    assert lost["exponential(10)", "gold", "standard"] == 0 and lost["raw", "gold", "standard"] == pytest.approx(0.1)
    cost = next(r for r in study_results.costs(found) if r["method"] == "raw")
    assert cost["calibration_share"] == pytest.approx(1 / 8) and cost["training_rollouts"] == 1280
    assert cost["rollout_share"] == pytest.approx(640 / 1920)


def test_the_report_holds_every_run_and_theory_beside_it(tmp_path, cells, capsys):
    write(tmp_path, cells)
    main.main(["report", str(tmp_path)])
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| tones-dpo-kl_0.5-seed_0 | failed | – | – | a / b |" in page
    assert "| exponential(10) − best uncalibrated (ppo) | 0.5 | best_of(4) | 2 | +0.080" in page
    target = next(line for line in page.splitlines() if line.startswith("| 0.5 | best_of(4) | exponential(10) | 0.726"))
    assert "+0.080 [+0.080, +0.080] (ppo) | +0.080 [+0.080, +0.080] |" in target
    assert "| identity | 1.50 (0.25) | 0.50 (0.00) | 2.00 (0.25) | 0.50 (0.00) |" in page
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names >= {
        "comparison_tones.png",
        "win_rate_tones.png",
        "hacking_tones.png",
        "robustness_tones.png",
        "ceilings.json",
        "runs.json",
    }
    ceiling = next(
        row
        for row in json.loads((tmp_path / "report" / "ceilings.json").read_text())
        if row["method"] == "exponential(10)" and row["kl"] == 0.5
    )
    assert ceiling["identity"] == pytest.approx(0.800, abs=0.001) and 0.87 < ceiling["optimum"] < 0.88
    gain = ceiling["optimum_table"] - ceiling["identity_table"]
    for end, name in (("of_gain", "win_rate"), ("low", "low"), ("high", "high")):
        assert ceiling[f"share_{end}"] == pytest.approx((ceiling[name] - ceiling["identity_table"]) / gain)
    most = {
        (row["method"], row["baseline"]): row["ceiling"]
        for row in json.loads((tmp_path / "report" / "differences.json").read_text())
        if (row["kl"], row["judge"], row["procedure"]) == (0.5, "train", "best_of(4)")
    }
    assert most["exponential(10)", "identity"] == pytest.approx(gain)  # a transform: as theory has it
    assert most["exponential(10)", "ppo"] == pytest.approx(
        ceiling["optimum_table"] - 0.62 - 0.025 - 0.001
    )  # as measured
    assert most["identity", "exponential(10)"] < 0.01 < most["exponential(10)", "identity"]


def test_a_kl_that_theory_refuses_costs_the_report_its_theory_alone(tmp_path, caplog):
    write(tmp_path, [fabricated("tones", method, 4.0, 0, level) for method, level in (("raw", 0.6), ("identity", 0.7))])
    page = report.build([tmp_path]).read_text()
    assert (
        "and is left out, for best_of(4) at KL 4." in page
        and "| identity − best uncalibrated (raw) | 4 | best_of(4) | 1 | +0.100" in page
    )
    assert [record.getMessage()[:54] for record in caplog.records] == [
        "the report has no theory for best_of(4) at a KL of 4: "
    ]


def test_damaged_results_are_named(tmp_path, cells):
    with pytest.raises(ValueError, match="holds no results"):
        report.build([tmp_path])
    page = tmp_path / "run" / "evaluate" / "report.html"
    page.parent.mkdir(parents=True)
    page.touch()
    with pytest.raises(ValueError, match=f"workdir of one run, not of a study; its report is {page}"):
        report.build([tmp_path / "run"])
    write(tmp_path, cells[-1:])
    with pytest.raises(ValueError, match="none of the 1 cells is finished"):
        report.build([tmp_path])
    (tmp_path / "cells" / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is no result of a cell"):
        report.build([tmp_path])
    with pytest.raises(ValueError, match="no flags"):
        main.main(["report", "--workdir=x"])


def test_more_methods_than_looks_stay_apart():
    methods = list(study_quickstart.get_config().methods)
    looks = style.looks(methods)
    assert list(looks) == style.order(methods) and len({(look.color, look.marker) for look in looks.values()}) == 17


def test_of_many_curves_the_highest_of_each_kind_is_named():
    """More methods than looks: a method that was not trained for all KLs is drawn, but is no candidate for a name."""
    wins = {name: 0.5 + 0.01 * place for place, name in enumerate(study_quickstart.get_config().methods)}
    keys = {"task": "tones", "judge": "train", "procedure": "standard", "off_target": False}
    rows = [
        {**keys, "method": name, "kl": kl, "kl_measured": kl, "win_rate": win, "low": win - 0.1, "high": win + 0.1}
        for name, win in {**wins, "max_at_k(8)": 0.99}.items()
        for kl in (0.5, 1.0)
        if kl == 0.5 or name in wins
    ]
    made = study_figures.win_rate_against_kl(rows, "tones", "train")
    (axes,) = made.figure().axes
    assert len(axes.lines) == len(wins) + 1
    named = {line.get_label() for line in axes.lines if not line.get_label().startswith("_")}
    highest = {
        max((name for name in wins if study_figures.kind(name) == kind), key=wins.get)
        for kind in ("raw", "identity", "exponential+")
    }
    assert named == highest and "dpo" in named
    assert "Grey: methods that use rewards as they are" in made.caption


def test_a_policy_that_loses_by_far_is_told_in_words():
    keys = {"kl": 0.5, "procedure": "best_of(4)", "off_target": False}
    wins = {"identity": 0.8, "raw": 0.46, "bonbon_worst(4)": 0.23}
    rows = [
        {**keys, "method": name, "win_rate": win, "low": win - 0.01, "high": win + 0.01} for name, win in wins.items()
    ]
    (axes,) = study_figures.comparison(rows, [], "tones", "train", 0.5).figure().axes
    assert axes.get_xlim()[0] > 0.4 and len(axes.lines) == 2
    assert [text.get_text() for text in axes.texts] == ["← 0.230 [0.220, 0.240]"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_runs_and_reports(tmp_path):
    """Every part of a tiny study for real; a second call finds everything done."""
    words = ["study", f"--config={ROOT}/tests/study_tiny.py", f"--workdir={tmp_path}", "--config.seeds=0"]
    main.main(words)
    results = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir()}
    assert {result["status"] for result in results.values()} == {"done"}, results
    assert len({result["rewards"]["words"] for result in results.values()}) > 1
    for result in results.values():  # by blocks too, two responses a prompt and not those of sampling
        wins = result["win_rates"]["train"]
        assert len(wins["blockwise(2,2)"]) == len(wins["standard"]) and wins["blockwise(2,2)"] != wins["standard"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
    main.main(words)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")} == before
    assert report.build([tmp_path]).exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_processes_share_a_study_and_one_that_is_killed_costs_nothing(tmp_path):
    """Two processes in one folder, one killed within a cell; what is left ends as in a study of one process, to the bit."""
    words = [sys.executable, "-m", "infalign_jax", "study", f"--config={ROOT}/tests/study_tiny.py"]
    words += ["--config.seeds=0", "--config.methods=raw,exponential(10)"]

    def start(folder):
        return subprocess.Popen([*words, f"--workdir={tmp_path / folder}"], cwd=ROOT, stderr=subprocess.DEVNULL)

    victim, other = start("shared"), start("shared")
    while not list((tmp_path / "shared").glob("runs/*kl*/align")):
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL and other.wait() == 0 and start("alone").wait() == 0

    def results(folder):
        return {
            path.name: {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
            for path in (tmp_path / folder / "cells").iterdir()
        }

    assert results("shared") == results("alone") and len(results("alone")) == 2
    assert all(result["status"] == "done" for result in results("alone").values())


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_reduced_study_shows_the_ordering(tmp_path):
    """A transform for a procedure wins at it, over identity and group-std: paired intervals over prompts and seeds above 0."""
    words = [sys.executable, "-m", "infalign_jax", "study", f"--config={ROOT}/configs/study_small.py"]
    processes = [subprocess.Popen([*words, f"--workdir={tmp_path}"], cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    report.build([tmp_path])
    groups = study_results.groups(study_results.read([tmp_path]))
    lows = {
        (r["method"], r["baseline"], r["procedure"]): r["low"]
        for r in study_results.differences(groups)
        if r["judge"] == "gold"
    }
    for method, procedure in (("exponential(10)", "best_of(4)"), ("optimal(worst_of(4))", "worst_of(4)")):
        assert lows[method, "identity", procedure] > 0 and lows[method, "raw_group_std", procedure] > 0

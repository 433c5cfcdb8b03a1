"""Frontiers, the best exponential and minimax averages against the theory they are made of and published values."""

import numpy as np
import pytest

from infalign_jax.core import frontier, optimal, procedures, theory, transforms
from infalign_jax.stages import evaluate
from tests import tiny


def test_rows_are_the_win_rates_at_these_kls_and_the_optimum_is_above_all():
    kls = (0.2, 0.5, 1.0)
    rows = frontier.frontier("best_of(4)", ("identity", "log", "exponential(10)", "optimal"), kls)
    assert len(rows) == 12 and {row["transform"] for row in rows} == {"identity", "log", "exponential(10)", "optimal"}
    by_key = {(row["transform"], row["kl"]): row for row in rows}
    assert by_key["exponential(10)", 0.5]["win_rate"] == pytest.approx(0.87151, abs=6e-6)
    for kl in kls:
        phi = transforms.standardize(transforms.log())
        assert by_key["log", kl]["beta"] == pytest.approx(theory.beta_for_kl(phi, kl))
        rates = {name: by_key[name, kl]["win_rate"] for name in ("identity", "log", "exponential(10)", "optimal")}
        assert max(rates, key=rates.get) == "optimal"


def test_out_of_reach_points_are_none():
    rows = frontier.frontier("best_of(2)", ("identity",), (0.5, 3.0), calibration_samples=4)
    assert rows[0]["win_rate"] > 0.5 and rows[1]["win_rate"] is None and rows[1]["beta"] is None


def test_an_evaluation_beyond_what_theory_resolves_has_its_curves_end_there():
    config = tiny.get_config()
    with config.unlocked():
        config.evaluate.best_of, config.evaluate.worst_of = (), (8,)
        config.align.methods = ("raw", "identity")
    rows = [row for row in evaluate._theory(config, 40.0) if row["procedure"] == "worst_of"]
    kls = np.linspace(0.02, 40.0, 12)
    told = [row["kl"] for row in rows if row["transform"] == "optimal"]
    assert told and told == kls[: len(told)].tolist() and len(told) < len(kls)
    with pytest.raises(ValueError, match="float64"):
        optimal.optimal_transform("worst_of(8)", kl=kls[len(told)])
    assert all(0.5 < row["win_rate"] <= 1 for row in rows)
    worst = procedures.worst_of(8)
    assert evaluate.theory_at("optimal(worst_of(8))", worst, 40.0) is None
    known = optimal.optimal_transform("worst_of(8)", kl=0.5).win_rate
    assert evaluate.theory_at("optimal(worst_of(8))", worst, 0.5) == pytest.approx(known, abs=1e-6)


def test_figure_has_a_panel_for_each_procedure_and_a_line_for_each_transform():
    rows = [
        r
        for name in ("best_of(2)", "worst_of(2)")
        for r in frontier.frontier(name, ("identity", "optimal"), (0.2, 0.6))
    ]
    panels = frontier.figure(rows, title="both").axes
    assert [axis.get_title() for axis in panels] == ["best_of(2)", "worst_of(2)"]
    line = panels[1].get_lines()[1]
    assert line.get_label() == "optimal"
    expected = [optimal.optimal_transform("worst_of(2)", kl=kl).win_rate for kl in (0.2, 0.6)]
    np.testing.assert_allclose(line.get_ydata(), expected)


@pytest.mark.parametrize(
    ("name", "kl", "t"), [("best_of(8)", 1.0, 55), ("best_of(4)", 0.5, 12.6), ("worst_of(4)", 0.5, -9.7)]
)
def test_best_exponential(name, kl, t):
    found = frontier.best_exponential(name, kl)
    assert found["t"] == pytest.approx(t, rel=0.02)
    procedure = procedures.from_name(name)

    def rate(t):
        phi = transforms.standardize(transforms.exponential(t))
        return theory.win_rate(procedure, phi, theory.beta_for_kl(phi, kl))

    assert found["win_rate"] == pytest.approx(rate(found["t"]), abs=1e-9)
    assert all(rate(found["t"] * factor) < found["win_rate"] for factor in (0.7, 0.95, 1.05, 1.4))
    assert 0 < found["loss"] <= found["loss_paper"] and found["t_paper"] == (10 if t > 0 else -10)


def test_uniform_average_and_minimax_losses():
    parts = [procedures.best_of(n) for n in (1, 2, 4, 8)]
    best = [optimal.optimal_transform(part, kl=0.5).win_rate for part in parts]
    uniform = optimal.optimal_transform(procedures.average_of([(0.25, part) for part in parts]), kl=0.5)
    losses = [b - theory.win_rate(part, uniform.phi, uniform.beta) for b, part in zip(best, parts, strict=True)]
    np.testing.assert_allclose(losses, [0.033, 0.006, 0.008, 0.027], atol=6e-4)
    objective, least = frontier.minimax_average(parts, 0.5)
    assert max(least) == pytest.approx(0.028, abs=6e-4) and max(least) < max(losses)
    weights = {part.name: w for w, part in objective.parts}
    # complementary slackness: only procedures with the largest loss carry weight
    for part, loss in zip(parts, least, strict=True):
        assert loss == pytest.approx(max(least), abs=1e-5) or weights.get(part.name, 0.0) < 1e-4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frontier.frontier("best_of(4)", ("exp",)), "unknown transform"),
        (lambda: frontier.frontier("best_of(4)", ("identity",), (0.0,)), "kl must be"),
        (lambda: frontier.best_exponential("best_of(4)", 0), "kl must be"),
        (lambda: frontier.minimax_average(["best_of(2)"], 0.5), "at least two"),
        (lambda: frontier.minimax_average(["best_of(2)", "worst_of(2)"], 0.5), "convex"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)

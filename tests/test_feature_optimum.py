"""The best policy of some features: against brute force and simulation, and what it says about the ledger task."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import optimize

from infalign_jax import ledger_memory
from infalign_jax.core import feature_optimum, procedures
from infalign_jax.core.winrate import exact_win_rate
from infalign_jax.data import synthetic_ledger

SUITS = np.arange(25) < 8


@pytest.mark.parametrize("name", ["standard", "best_of(4)", "worst_of(4)", "average_of(best_of(2), worst_of(3))"])
def test_any_policy_over_three_rewards_by_brute_force(name):
    rewards, objective, kl = np.repeat([0.0, 1.0, 5.0], [5, 3, 2]), procedures.from_name(name), 0.3
    found = feature_optimum.solve(objective, rewards, np.eye(3)[np.repeat([0, 1, 2], [5, 3, 2])], kl)
    reference = np.array([0.5, 0.3, 0.2])
    grid = np.stack(np.meshgrid(*[np.linspace(1e-6, 1, 400)] * 2, indexing="ij"), -1).reshape(-1, 2)
    policies = np.c_[grid, 1 - grid.sum(1)][grid.sum(1) < 1 - 1e-6]
    policies = policies[(policies * np.log(policies / reference)).sum(1) <= kl]
    best = exact_win_rate(objective, policies, reference, np.array([0.0, 1.0, 5.0])).max()
    assert best <= found.win_rate + 1e-6 and found.win_rate == pytest.approx(best, abs=3e-3)  # the grid's width
    assert found.kl == pytest.approx(kl, rel=1e-3)
    own = exact_win_rate(objective, found.weights_N, np.full(10, 0.1), rewards)
    assert own == pytest.approx(found.win_rate, abs=1e-12)


def test_features_that_say_nothing_of_the_reward_win_nothing():
    rng = np.random.default_rng(0)
    found = feature_optimum.solve(
        procedures.best_of(4), np.repeat(rng.normal(size=100), 2), np.tile([0, 1], 100)[:, None], 0.5
    )
    assert found.win_rate == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(
    "rewards, features, kl, says",
    [
        ([0.0, 1.0], [[0.0]], 0.1, r"rewards \(2,\) and features \(1, 1\) must be \[N\] and \[N, F\]"),
        ([0.0, np.nan], [[0.0], [1.0]], 0.1, "rewards_N has nan at index"),
        ([0.0, 1.0], [[0.0], [1.0]], 0.0, "kl is 0; it must be above 0"),
        ([0.0, 1.0], [[0.0], [1.0]], np.nan, "kl is nan"),
        ([0.0, 1.0], [[0.0], [1.0]], 1e-15, "no policy of these features was found within kl = 1e-15"),
    ],
)
def test_refusals(rewards, features, kl, says):
    with pytest.raises(ValueError, match=says):
        feature_optimum.solve(procedures.standard(), rewards, features, kl)


def test_a_procedure_that_looks_at_more_than_ranks_is_refused():
    with pytest.raises(ValueError, match="has no distortion"):
        feature_optimum.solve(procedures.from_name("rewind_and_repeat(0.75,4)"), [0.0, 1.0], [[0.0], [1.0]], 0.1)


def test_ledgers_entry_by_entry():
    """Entries 0 to 7 suit; the seventh is unknown."""
    names = synthetic_ledger.ENTRIES
    text = " ".join([names[0], names[1], names[1], names[9], names[2], names[3], "unheard", names[4]])
    suits, run, repeats, live = (x[0].astype(int).tolist() for x in ledger_memory.entries([text], SUITS))
    assert suits == [1, 1, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0]
    assert run[:9] == [0, 1, 2, 1, 0, 1, 2, 0, 1]
    assert repeats == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert live == [1] * 8 + [0] * 4
    alone = ledger_memory.entries([names[0], names[9], ""], SUITS)
    assert ledger_memory.shares(alone) == ["0.500", "–", "–", "–", "–"]  # no entry follows a run
    assert ledger_memory.shares(alone, np.array([0.75, 0.25, 0.0]))[0] == "0.750"


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_memory, "REFERENCE_DRAWS", 8_000)
        return ledger_memory.ceilings(0.5, 2 / 3)


def test_who_looks_back_can_win_more_on_ledger(found):
    wins, laws = found
    table = np.array([row[2:] for row in wins], float)
    blind, seeing, anything = table[:3], table[3:6], table[6]
    assert (np.diag(blind) >= blind.max(0) - 0.001).all() and (np.diag(seeing) >= seeing.max(0) - 0.001).all()
    assert (np.diag(blind) < np.diag(seeing)).all() and (np.diag(seeing) < anything).all()
    # Only who looks back can do what a transform asks for.
    assert np.ptp(blind[:, 1]) < 0.01 < 0.06 < np.ptp(seeing[:, 1])
    shares = {(row[0], row[1]): np.array(row[2:], float) for row in laws}
    np.testing.assert_allclose(shares["the reference", ""], 2 / 3, atol=0.01)
    assert np.all(np.diff(shares["place and run so far", "best_of(4)"]) > 0)


def test_a_speaker_who_suits_more_often_is_just_below_the_ceiling_of_those_who_do_not_look_back(found):
    """All places alike: entries suit with probability p, KL is the mean length times that of p to 2/3, and nothing is solved."""
    blind = np.array([row[2:] for row in found[0][:3]], float)
    rng, count = np.random.default_rng(1), 100_000
    p = optimize.brentq(lambda p: 9 * (p * np.log(p * 3 / 2) + (1 - p) * np.log((1 - p) * 3)) - 0.5, 0.7, 0.9)
    worths = []
    for chance in (2 / 3, p):
        suiting, other = rng.integers(0, 8, (count, 12)), rng.integers(8, 24, (count, 12))
        ids = np.where(rng.random((count, 12)) < chance, suiting, other)
        words, lengths = np.array(synthetic_ledger.ENTRIES)[ids], rng.choice(synthetic_ledger.LENGTHS, count)
        worths.append([synthetic_ledger.worth(" ".join(row[:n]), SUITS) for row, n in zip(words, lengths, strict=True)])
    values = np.unique(np.concatenate(worths))
    laws = [np.bincount(np.searchsorted(values, worth), minlength=len(values)) / count for worth in worths]
    for name, ceiling in zip(ledger_memory.PROCEDURES, np.diag(blind), strict=True):
        win = exact_win_rate(procedures.from_name(name), laws[1], laws[0], values)
        assert ceiling - 0.03 < win < ceiling + 0.003


def test_the_command(tmp_path, monkeypatch, capsys, found):
    monkeypatch.setattr(ledger_memory, "ceilings", lambda kl, chance: found)

    def load_policy(folder):
        def generate(prompts, n, max_tokens):
            suits = synthetic_ledger._suiting(3)
            texts = synthetic_ledger.speak([p for p in prompts for _ in range(n)], suits, np.random.default_rng(0))
            return [texts[i : i + n] for i in range(0, len(texts), n)]

        return SimpleNamespace(generate=generate)

    monkeypatch.setattr("infalign_jax.policy.load_policy", load_policy)
    config = {"seed": 3, "data": {"name": "synthetic_ledger", "test_prompts": 64, "response_tokens": 14}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ledger_memory.main(["--policies", str(tmp_path / "sft")])
    *_, speaker = capsys.readouterr().out.strip().splitlines()
    assert speaker.startswith(f"| {tmp_path}/sft |  | 0.6")
    np.testing.assert_allclose(np.array(speaker.split("|")[3:-1], float), 2 / 3, atol=0.03)

    config["data"]["name"] = "synthetic"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="no policy of a run on a ledger task"):
        ledger_memory.main(["--policies", str(tmp_path / "sft")])
    with pytest.raises(ValueError, match="--kl is 9; it must be above 0 and below 4"):
        ledger_memory.main(["--kl", "9"])
    with pytest.raises(ValueError, match="--chance is 1; it must be above 0 and below 1"):
        ledger_memory.main(["--chance", "1"])


def test_what_is_wrong_is_said_in_one_sentence():
    command = [sys.executable, "-m", "infalign_jax.ledger_memory", "--kl", "9"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (2, "infalign: --kl is 9; it must be above 0 and below 4\n")

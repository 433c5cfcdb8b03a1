"""Reward functions for other trainers, without the trainers: numbers, sources, and what is refused."""

import subprocess
import sys
import types

import numpy as np
import pytest

from infalign_jax.core import optimal, transforms
from infalign_jax.integrations import trl, tunix
from tests.refusals import refused

TABLE = {"a": [3.0, 1.0, 2.0, 2.0], "b": [10.0]}


def by_length(prompts, completions):
    return [float(len(text)) for text in completions]


def test_scores_by_hand_in_both_signatures():
    expected = transforms.standardize(transforms.exponential(2))(np.array([0.125, 0.5, 1.0, 0.5, 0.0]))
    prompts, completions = list("aaabb"), ["x", "xx", "xxxx", "x" * 10, "x"]
    for module in (trl, tunix):
        reward = module.RewardFunction(by_length, "exponential(2)", table=TABLE)
        assert reward(prompts=prompts, completions=completions) == pytest.approx(expected, rel=1e-5)
        assert reward.__name__ == "exponential(2)_of_by_length" and reward.beta is None
        assert reward(prompts=[], completions=[]) == []


def test_beta_and_the_optimal_transform_are_those_of_the_theory():
    table = {"a": np.arange(64.0)}
    reward = trl.RewardFunction(by_length, "optimal(best_of(8))", kl=0.5, table=table)
    phi, beta = optimal.resolve("optimal(best_of(8))", kl=0.5, calibration_samples=64)
    assert reward.beta == beta and trl.settings(reward, "rloo")["beta"] == beta
    (score,) = reward(prompts=["a"], completions=["x" * 40])
    assert score == pytest.approx(float(phi(40.5 / 64)), rel=1e-4)


def test_a_reward_gets_the_columns_it_names_and_none_stays_none():
    seen = {}

    def picky(prompts, completions, answer, **rest):
        seen.update(answer=answer, rest=rest)
        return [None if text == "?" else 2.0 for text in completions]

    logged = {}
    reward = trl.RewardFunction(picky, table=TABLE)
    scores = reward(
        prompts=["a", "a"], completions=["x", "?"], completion_ids=[[1], [2]], answer=["1", "2"], trainer_state="s",
        log_extra=logged.__setitem__, log_metric=lambda name, value: logged.update({name + "_mean": value}),
    )  # fmt: skip
    assert scores[0] == 0.0 and scores[1] is None  # u = 1/2 is the mean of the identity
    assert seen["answer"] == ["1", "2"] and seen["rest"] == {"completion_ids": [[1], [2]], "trainer_state": "s"}
    assert logged == {
        "raw_reward": [2.0, None],
        "calibrated": [0.5, None],
        "raw_reward_mean": 2.0,
        "calibrated_mean": 0.5,
    }
    with pytest.raises(ValueError, match="Tunix needs a number"):
        tunix.RewardFunction(picky, table=TABLE)(prompts=["a"], completions=["?"], answer=["1"])


def test_the_sampler_s_own_columns_follow_its_prompts():
    def marked(prompts, completions, mark):
        return [m + len(c) for m, c in zip(mark, completions, strict=True)]

    reward = trl.RewardFunction(
        marked, sampler=lambda prompts, n: [["x" * i for i in range(n)] for _ in prompts], rollouts=3
    )
    reward(prompts=["a", "a", "b"], completions=["", "", ""], mark=[10, 10, 20])
    assert {name: row.tolist() for name, row in reward.known.items()} == {"a": [10, 11, 12], "b": [20, 21, 22]}
    reward.sampler = None  # not asked again
    assert reward.score(["b"], ["x"], {"mark": [20]})[1] == [0.5]


def test_a_table_on_disk(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,reward\na,1\na,2\na,3\n")
    assert trl.RewardFunction(by_length, table=tmp_path / "t.csv").score(["a"], ["xx"], {})[1] == [0.5]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: trl.RewardFunction(by_length), "exactly one of table, column and sampler, got none"),
        (lambda: trl.RewardFunction(by_length, table=TABLE, column="c"), "got table, column"),
        (lambda: trl.RewardFunction(3, table=TABLE), "reward must be a plain function"),
        (lambda: trl.RewardFunction(by_length, table={}), "table is empty"),
        (lambda: trl.RewardFunction(by_length, table={"a": []}), "prompt 'a': the prompt has no reference reward"),
        (lambda: trl.RewardFunction(by_length, table={"a": [np.nan]}), "not finite in float32: [nan]"),
        (lambda: trl.RewardFunction(by_length, table={"a": ["high"]}), "they must be numbers"),
        (lambda: trl.RewardFunction(by_length, table="nowhere.jsonl"), "'nowhere.jsonl' does not exist"),
        (lambda: trl.RewardFunction(by_length, "lg", table=TABLE), "unknown transform 'lg'"),
        (lambda: trl.RewardFunction(by_length, "optimal(best_of(4))", table=TABLE), "give kl too"),
        (lambda: trl.RewardFunction(by_length, kl=9.0, table=TABLE), "out of reach"),
        (lambda: trl.RewardFunction(by_length, table=TABLE, tails="no"), "tails must be one of"),
        (lambda: trl.RewardFunction(by_length, sampler=list, rollouts=0), "rollouts must be a whole number >= 1"),
        (lambda: trl.RewardFunction(by_length, table=TABLE)(["c"], ["x"]), "no reference rewards for the prompt 'c'"),
        (lambda: trl.RewardFunction(by_length, column="r")(["a"], ["x"]), "the dataset has no column 'r'"),
        (lambda: trl.RewardFunction(lambda **_: [1.0], table=TABLE)(["a"] * 2, ["x"] * 2), "1 values for 2 completions"),
        (lambda: trl.RewardFunction(lambda **_: [np.inf], table=TABLE)(["a"], ["x"]), "is inf for prompt 'a', completion 'x'"),
        (lambda: trl.RewardFunction(by_length, sampler=lambda p, n: [["x"]])(["a"], ["x"]), "sampler must give 64 completions"),
        (lambda: trl.settings(None, "ppo"), "trainer is 'ppo'; legal are rloo, grpo"),
        (lambda: tunix.settings(None, "grpo"), "advantage_estimator is 'grpo'; legal are rloo, drgrpo"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(act, words):
    assert words in refused(act)


def test_settings_that_are_right_are_not_warned_about(recwarn):
    reward = trl.RewardFunction(by_length, "exponential(10)", kl=0.3, table={"a": np.arange(32.0)})
    for trainer in ("rloo", "grpo"):
        assert trl.check(reward, types.SimpleNamespace(**trl.settings(reward, trainer))) == []
    assert tunix.check(reward, types.SimpleNamespace(**tunix.settings(reward))) == []
    assert not recwarn.list


def test_no_trainer_is_imported():
    code = (
        "import sys, infalign_jax.integrations.trl, infalign_jax.integrations.tunix;"
        "print([m for m in ('torch', 'trl', 'tunix', 'flax', 'orbax', 'grain') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"

"""What a cut response is worth, and what the logged mean is of."""

import numpy as np
import pytest

from infalign_jax.stages.reward import mean_reward, score


def scored(truncated):
    return score(
        lambda prompts, completions: [len(text) for text in completions], ["p"] * 3, ["a", "bb", "cccc"],
        [True, False, True], truncated=truncated, penalty=0.5, where="test",
    )  # fmt: skip


@pytest.mark.parametrize(
    "truncated, second, mean", [("as_is", 2.0, 7 / 3), ("penalty", 1.5, 6.5 / 3), ("lowest", None, 2.5)]
)
def test_cut_responses(truncated, second, mean):
    rewards = scored(truncated)
    assert rewards[1] == second if second is not None else rewards[1] < rewards[[0, 2]].min() - 1e6
    np.testing.assert_allclose(mean_reward(rewards), mean, rtol=1e-6)


def test_mean_of_no_reward_is_zero():
    assert mean_reward(scored("lowest")[1:2]) == 0.0

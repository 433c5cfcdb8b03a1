"""Rewards of responses that blockwise decoding returns: shapes, random bits, and what a scorer does to them."""

import jax
import numpy as np
import pytest

from infalign_jax.models import transformer
from infalign_jax.stages import decoded, settings
from infalign_jax.stages.cell import count_words
from infalign_jax.stages.experiment import encode_split, open_experiment
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = open_experiment(settings.resolve(tiny.get_config(), tmp_path_factory.mktemp("decoded")))
    return found, transformer.init(found.model, jax.random.key(0)), encode_split(found, "test")


def longer(tokens_BW, lengths_B, blocks_BKM, lengths_BK):
    return lengths_BK.astype(np.float32)


def test_a_scorer_that_likes_long_blocks_lengthens_responses(made):
    found, variables, prompts = made
    calls = []

    def words(prompts, completions):
        calls.append(len(prompts))
        return count_words(prompts, completions)

    def lengths(candidates, purpose="test"):
        return decoded.rewards(
            found, variables, prompts, {"train": words, "gold": words}, longer, candidates, 2, purpose
        )

    plain, chosen = lengths(1), lengths(8)
    assert calls == [12 * 16, 12 * 2]  # as many draws whatever K is, and a reward that is its own judge is asked once
    assert plain["train"].shape == (12, 16) and chosen["train"].shape == (12, 2) and chosen["gold"] is chosen["train"]
    assert chosen["train"].mean() > plain["train"].mean() + 0.5 and chosen["train"].min() >= 5
    assert np.array_equal(lengths(8)["train"], chosen["train"])
    assert not np.array_equal(lengths(8, "other")["train"], chosen["train"])


def test_responses_of_a_prompt_have_random_bits_of_their_own(made):
    found, variables, prompts = made
    sizes = {"gold": lambda prompts, texts: [float(hash(text) % 2**20) for text in texts]}
    rewards_PD = decoded.rewards(found, variables, prompts, sizes, longer, 1, 8, "test")["gold"]
    assert all(len(set(row)) > 12 for row in rewards_PD)

"""Our reward functions inside Tunix's own GRPOLearner, on its toy transformer.

Tunix wants an environment of its own (its pins differ from TRL's):

    python -m venv tunix && . tunix/bin/activate
    pip install google-tunix chex scipy pytest pytest-timeout pytest-xdist
    pytest -m peers -n 0 tests/peers/test_tunix.py
"""

import pathlib
import sys
import warnings

import numpy as np
import pytest

grpo = pytest.importorskip("tunix.rl.grpo.grpo_learner")

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import optax
from flax import nnx
from tunix.rl import function_registry, rl_cluster
from tunix.rl.rollout import base_rollout
from tunix.tests import test_common as toys

from infalign_jax.core import transforms
from infalign_jax.integrations import tunix as ours
from tests.peers.recording import recording

pytestmark = pytest.mark.peers
PROMPTS = ["hello world", "My name is", "Hello there !", "input string"]
G = 4


def variety(prompts, completions):
    """Reward: different words of a completion, on a scale of the prompt's own, which calibration takes away."""
    return [len(set(c.split())) * (1 + 10 * PROMPTS.index(p)) for p, c in zip(prompts, completions, strict=True)]


TABLE = {p: (np.arange(11) * (1 + 10 * i)).tolist() for i, p in enumerate(PROMPTS)}  # 0 to 10 different words


def by_hand(prompts, raw):
    rows = [np.array(TABLE[p]) for p in prompts]
    u = np.array([np.mean(row < r) + np.mean(row == r) / 2 for row, r in zip(rows, raw, strict=True)])
    return u, transforms.standardize(transforms.exponential(10))(u)


def train(reward, rows, steps=2, **changes):
    """Advantages of each step of the learner."""
    vocabulary = toys.MockVocab()
    config = toys.ModelConfig(vocab_size=vocabulary.GetPieceSize(), num_layers=1)
    policy, reference = (toys.ToyTransformer(config=config, rngs=nnx.Rngs(0)) for _ in range(2))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=policy, reference=reference, tokenizer=vocabulary,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.sgd(1e-2), eval_every_n_steps=100, max_steps=steps
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=10, max_prompt_length=8, kv_cache_size=64, temperature=1.0
            ),
        ),
    )  # fmt: skip
    settings = {**ours.settings(reward), **changes}
    learner = grpo.GRPOLearner(
        rl_cluster=cluster, algo_config=grpo.GRPOConfig(num_generations=G, **settings), reward_fns=reward
    )
    seen, plain = [], learner._generate_and_compute_advantage

    def recorded(*arguments, **keywords):
        example = plain(*arguments, **keywords)
        seen.append(np.asarray(example.advantages))
        return example

    learner._generate_and_compute_advantage = recorded
    learner.train(rows)
    return seen


def rows(steps=2, **columns):
    return [{"prompts": np.array(PROMPTS), **columns} for _ in range(steps)]


@pytest.mark.parametrize("estimator", ["rloo", "drgrpo"])
def test_scores_reach_the_advantages_with_their_scale(estimator):
    reward = ours.RewardFunction(variety, "exponential(10)", kl=0.5, table=TABLE)
    calls = recording(reward)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="GRPOConfig")
        seen = train(reward, rows(), advantage_estimator=estimator)
    assert len(calls) == len(seen) == 2
    for (prompts, raw, u, scores), advantages in zip(calls, seen, strict=True):
        assert len(prompts) == len(PROMPTS) * G and prompts[:G] == [PROMPTS[0]] * G  # copies stand together
        expected_u, expected = by_hand(prompts, raw)
        np.testing.assert_allclose(u, expected_u, atol=1e-6)
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
        scores_BR = np.reshape(scores, (-1, G))
        centred = (scores_BR - scores_BR.mean(1, keepdims=True)).ravel()
        np.testing.assert_allclose(advantages, centred * (G / (G - 1) if estimator == "rloo" else 1), atol=1e-5)
    assert np.ptp(calls[0][3]) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"advantage_estimator": "grpo"}, "advantage_estimator is 'grpo'"),
        ({"kl_loss_mode": "kl"}, "kl_loss_mode is 'kl'"),
        ({"beta": 0.0}, "beta is 0.0: nothing holds"),
        ({"beta": 0.04}, "beta is 0.04, but a KL of 0.5"),
    ],
)
def test_a_setting_that_undoes_the_transform_is_warned_about(changes, words):
    reward = ours.RewardFunction(variety, "exponential(10)", kl=0.5, table=TABLE)
    with pytest.warns(UserWarning) as caught:
        train(reward, rows(1), steps=1, **changes)
    assert sum(words in str(warning.message) for warning in caught) == 1


def test_reference_rewards_in_a_column():
    reward = ours.RewardFunction(variety, "exponential(10)", kl=0.5, column="reference_rewards", rollouts=11)
    calls = recording(reward)
    train(reward, rows(1, reference_rewards=np.array([TABLE[p] for p in PROMPTS], np.float32)), steps=1)
    prompts, raw, u, _ = calls[0]
    np.testing.assert_allclose(u, by_hand(prompts, raw)[0], atol=1e-6)


def test_the_settings_are_names_tunix_knows():
    reward = ours.RewardFunction(variety, "identity", table=TABLE)
    for estimator in ours.SCALE_KEPT:
        grpo.GRPOConfig(**ours.settings(reward, estimator))
        assert function_registry.get_advantage_estimator(estimator)

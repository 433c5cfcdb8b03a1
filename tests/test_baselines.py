"""The baselines: losses and estimators against hand-computed values, closed forms and enumeration; then all of them trained."""

import itertools
import json
import math
import pathlib
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from infalign_jax import load_policy, main
from infalign_jax.core import procedures
from infalign_jax.core.best_of_n import best_of_n_kl, best_of_n_weights, n_for_kl
from infalign_jax.core.log_sigmoid import log_sigmoid
from infalign_jax.core.max_at_k import max_at_k, max_at_k_advantages
from infalign_jax.core.policy_gradient import regularized_return, surrogate_loss
from infalign_jax.core.ppo import clipped_policy_loss, generalized_advantages, token_rewards, value_loss, whiten
from infalign_jax.core.preference_losses import bonbon_loss, bonbon_margin, dpo_loss, ipo_loss
from infalign_jax.reporting import metrics
from infalign_jax.stages import methods, offline, on_policy, order
from tests import tiny

REFERENCE = np.array([0.1, 0.25, 0.3, 0.05, 0.2, 0.1])
REWARDS = np.array([0.3, -1.0, 2.0, 5.0, 0.0, 0.3])  # two outcomes tie


def minimiser(loss):
    """The policy over the six outcomes that minimises `loss(log_ratios)`, found by BFGS on its logits."""

    def value(logits):
        return loss(jax.nn.log_softmax(logits) - jnp.log(REFERENCE))

    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(value))
        found = optimize.minimize(lambda x: [np.asarray(y) for y in both(x)], np.log(REFERENCE), jac=True, tol=1e-12)
    return special.softmax(found.x)


def all_pairs():
    """Every ordered pair of outcomes and its probability under two draws of the reference."""
    first, second = (x.ravel() for x in np.meshgrid(range(6), range(6), indexing="ij"))
    return first, second, REFERENCE[first] * REFERENCE[second]


def tilted(scores):
    return special.softmax(np.log(REFERENCE) + scores)


def calibrated():
    below, up_to = (
        (REFERENCE * compare(REWARDS[None], REWARDS[:, None])).sum(1) for compare in (np.less, np.less_equal)
    )
    return (below + up_to) / 2


def test_losses_of_pairs_by_hand():
    margins = jnp.array([2.0, -1.0])
    assert float(dpo_loss(margins, 0.5)) == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))) / 2)
    assert float(dpo_loss(margins, 0.5, jnp.array([0.5, 1.0]))) == pytest.approx(
        (0.5 * math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.e) + math.log1p(math.exp(0.5))) / 2
    )
    assert float(ipo_loss(margins, 0.25)) == pytest.approx((0.0 + 9.0) / 2)
    assert float(ipo_loss(margins, 0.25, jnp.array([0.5, 1.0]))) == pytest.approx((0.5 * 16.0 + 9.0) / 2)
    assert bonbon_margin(4) == pytest.approx(3 * (1 + 1 / 2 + 1 / 3))
    assert float(bonbon_loss(margins, jnp.array([-3.0, -5.0]), 2, 0.25)) == pytest.approx(
        (0.75 * (1.0 + 4.0) + 0.25 * 8.0) / 2
    )
    with pytest.raises(ValueError, match="n must be a whole number >= 2, got 1"):
        bonbon_margin(1)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_dpo_on_bradley_terry_labels_ends_at_the_tilted_reference(beta):
    first, second, mass = all_pairs()
    preferred = special.expit(REWARDS[first] - REWARDS[second])

    def loss(log_ratios):
        margins = log_ratios[first] - log_ratios[second]
        return sum(mass[i] * dpo_loss(margins[i : i + 1], beta, preferred[i]) for i in range(36))

    np.testing.assert_allclose(minimiser(loss), tilted(REWARDS / beta), atol=1e-5)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_ipo_on_reward_order_ends_at_the_tilted_calibrated_reward(tau):
    first, second, mass = all_pairs()
    preferred = 0.5 * (1 + np.sign(REWARDS[first] - REWARDS[second]))

    def loss(log_ratios):
        margins = log_ratios[first] - log_ratios[second]
        return sum(mass[i] * ipo_loss(margins[i : i + 1], tau, preferred[i]) for i in range(36))

    np.testing.assert_allclose(minimiser(loss), tilted(calibrated() / tau), atol=1e-5)


def test_bonbon_targets_the_best_of_n_policy():
    """Its likelihood term alone ends at best-of-n, and its margin is that policy's mean margin of best and worst."""
    n = 3
    distinct = np.array([0.3, -1.0, 2.0, 5.0, 0.0, 0.4])
    order_ = np.argsort(distinct)
    cumulative = np.concatenate([[0.0], np.cumsum(REFERENCE[order_])])
    best = np.empty(6)
    best[order_] = np.diff(cumulative**n)
    found = minimiser(lambda h: bonbon_loss(jnp.zeros(1), (best * (h + jnp.log(REFERENCE))).sum()[None], n, 1.0))
    np.testing.assert_allclose(found, best, atol=1e-5)
    u = np.random.default_rng(0).random((400_000, n))  # log-ratio of best-of-n: log n + (n - 1) log u
    margins = (n - 1) * (np.log(u.max(1)) - np.log(u.min(1)))
    assert abs(margins.mean() - bonbon_margin(n)) < 5 * margins.std() / len(u) ** 0.5


def test_max_at_k_is_the_mean_over_all_subsets():
    rewards = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    for k in range(1, 7):
        expected = np.mean([rewards[:, list(s)].max(1) for s in itertools.combinations(range(6), k)], 0)
        np.testing.assert_allclose(max_at_k(jnp.asarray(rewards), k), expected, rtol=1e-5)
    for k in range(2, 7):
        advantages = max_at_k_advantages(jnp.asarray(rewards), k)
        for i in range(6):
            others = [j for j in range(6) if j != i]
            gains = [
                np.maximum(rewards[:, i] - rewards[:, list(s)].max(1), 0) for s in itertools.combinations(others, k - 1)
            ]
            np.testing.assert_allclose(advantages[:, i], k * np.mean(gains, 0), rtol=1e-4, atol=1e-6)
    ties = max_at_k_advantages(jnp.array([[1.0, 1.0, 1.0, 0.0]]), 2)
    np.testing.assert_allclose(ties, [[2 / 3, 2 / 3, 2 / 3, 0.0]], rtol=1e-5)
    np.testing.assert_allclose(max_at_k_advantages(jnp.array([[1.0, 2.0, 6.0]]), 1), [[-3.0, -1.5, 4.5]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"max_at_k\(4\) needs at least 4 rollouts"):
        max_at_k(jnp.ones((2, 3)), 4)


@pytest.mark.parametrize("k", [2, 3])
def test_max_at_k_gradient_is_that_of_the_enumerated_expectation(k):
    """Over all 3^4 outcomes of four rollouts the expected surrogate gradient is the gradient of E[max@k] - beta KL."""
    logits, reward, beta = jnp.array([0.2, -0.4, 0.1]), np.array([0.0, 1.0, 3.0], np.float32), 0.3
    log_q = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    draws = np.array(list(itertools.product(range(3), repeat=4)))
    sets = np.array(list(itertools.product(range(3), repeat=k)))

    def expectation(logits):
        log_p = jax.nn.log_softmax(logits)
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q))
        return jnp.sum(jnp.exp(log_p[sets].sum(1)) * reward[sets].max(1)) - beta * kl

    def estimate(drawn_R):
        def loss(logits):
            log_p = jax.nn.log_softmax(logits)
            advantages = on_policy.max_at_k_regularized(k)(reward[drawn_R][None], (log_p - log_q)[drawn_R][None], beta)
            return surrogate_loss(log_p[drawn_R][None, :, None], jnp.ones((1, 4, 1)), advantages)

        return -jax.grad(loss)(logits)

    reward = jnp.asarray(reward)
    probability = jnp.exp(jax.nn.log_softmax(logits)[draws].sum(1))
    mean = (probability[:, None] * jax.vmap(estimate)(jnp.asarray(draws))).sum(0)
    np.testing.assert_allclose(mean, jax.grad(expectation)(logits), atol=2e-6)


def test_generalised_advantages_are_the_direct_sum():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    lengths = rng.integers(1, 6, (2, 3))
    mask = (np.arange(5) < lengths[..., None]).astype(np.float32)
    discount, decay = 0.9, 0.8
    broken = np.where(mask > 0, values, np.nan)  # what is masked must not matter
    found, targets = generalized_advantages(
        *(jnp.asarray(x, jnp.float32) for x in (rewards, broken, mask)), discount=discount, decay=decay
    )
    for b, r in np.ndindex(2, 3):
        T = lengths[b, r]
        after = np.append(values[b, r, 1:T], 0.0)
        errors = rewards[b, r, :T] + discount * after - values[b, r, :T]
        for t in range(T):
            direct = sum((discount * decay) ** (s - t) * errors[s] for s in range(t, T))
            assert float(found[b, r, t]) == pytest.approx(direct, abs=1e-5)
            assert float(targets[b, r, t]) == pytest.approx(direct + values[b, r, t], abs=1e-5)
        assert not np.asarray(found[b, r, T:]).any()
    monte_carlo, _ = generalized_advantages(
        *(jnp.asarray(x, jnp.float32) for x in (rewards, 0 * values, mask)), discount=1.0, decay=1.0
    )
    np.testing.assert_allclose(monte_carlo[..., 0], (rewards * mask).sum(-1), atol=1e-5)


def test_token_rewards_add_up_to_the_regularised_return():
    scores, ratios = jnp.array([[2.0, -1.0]]), jnp.array([[[0.5, 0.25, jnp.nan], [0.1, 0.2, 0.3]]])
    mask = jnp.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]])
    rewards = token_rewards(scores, ratios, mask, 0.5)
    np.testing.assert_allclose(rewards, [[[-0.25, 2 - 0.125, 0.0], [-0.05, -0.1, -1 - 0.15]]], rtol=1e-6)
    np.testing.assert_allclose(rewards.sum(-1), regularized_return(scores, jnp.array([[0.75, 0.6]]), 0.5), rtol=1e-6)


def test_clipping_by_hand():
    ratios, advantages = np.array([[[0.5, 1.5, 1.0, 1.5]]]), jnp.array([[[1.0, 1.0, -2.0, -1.0]]])
    old, mask = jnp.zeros((1, 1, 4)), jnp.ones((1, 1, 4))
    value, gradient = jax.value_and_grad(clipped_policy_loss)(jnp.log(ratios), old, advantages, mask, 0.2)
    assert float(value) == pytest.approx(-(0.5 + 1.2 - 2.0 - 1.5) / 4)
    np.testing.assert_allclose(gradient, [[[-0.5 / 4, 0.0, 2.0 / 4, 1.5 / 4]]], rtol=1e-5)
    assert float(value_loss(jnp.array([1.0, 9.0]), jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0]))) == 2.0
    np.testing.assert_allclose(whiten(jnp.array([1.0, 3.0, 7.0]), jnp.array([1.0, 1.0, 0.0])), [-1, 1, 0], atol=1e-6)


def test_best_of_n_weights_are_its_law():
    rewards = np.array([[0.0, 2.0, 1.0, 1.0]])
    brute = np.zeros(4)
    for draws in itertools.product(range(4), repeat=3):
        top = rewards[0, list(draws)].max()
        tied = np.flatnonzero(rewards[0] == top)
        brute[tied] += 1 / 64 / len(tied)
    np.testing.assert_allclose(best_of_n_weights(rewards, 3)[0], brute, rtol=1e-12)
    np.testing.assert_allclose(best_of_n_weights(rewards, -3), best_of_n_weights(-rewards, 3), rtol=1e-12)
    np.testing.assert_allclose(best_of_n_weights(rewards, 1), 0.25)
    assert best_of_n_kl(n_for_kl(0.5)) == pytest.approx(0.5, abs=1e-9) and best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match=r"got 0\.5"):
        best_of_n_weights(rewards, 0.5)
    with pytest.raises(ValueError, match="out of reach"):
        n_for_kl(0.0)


def test_log_sigmoid_by_hand_and_by_rank():
    table = np.array([[0.0, 10.0, 20.0, 100.0], [0.0, 1.0, 2.0, 3.0]])
    level = np.quantile(table, 0.85, axis=1)
    rewards = np.array([[1.0, 60.0, 80.0], [2.0, -1000.0, 2.55]])
    found = log_sigmoid(rewards, table)
    np.testing.assert_allclose(found, special.log_expit(rewards - level[:, None]), rtol=1e-6)
    assert found[1, 2] == pytest.approx(-math.log(2), rel=1e-6)
    assert (np.argsort(found, 1) == np.argsort(rewards, 1)).all()
    with pytest.raises(ValueError, match=r"rewards has nan at index \[0, 0\]"):
        log_sigmoid(np.array([[np.nan], [0.0]]), table)


def test_groups_of_the_reference_are_drawn_as_said():
    rng = np.random.default_rng(0)
    rewards = np.tile(np.array([3.0, 1.0, 1.0, 2.0, 0.0]), (4000, 1))
    index, preferred = offline.choose("bonbon_best", 3, rewards, 4, rng)
    assert index.shape == (4000, 4) and preferred.shape == (4000, 2)
    share = np.bincount(index[:, 0], minlength=5) / 4000
    law = np.zeros(5)  # by rank: 0, 1, 1, 2, 3
    law[[4, 1, 2, 3, 0]] = procedures.best_of(3).rank_weights(5)
    law[[1, 2]] = law[[1, 2]].mean()
    np.testing.assert_allclose(share, law, atol=5 * 0.5 / 4000**0.5)
    worst, _ = offline.choose("bonbon_worst", 3, rewards, 4, rng)
    chosen, rejected = np.take_along_axis(rewards, worst, 1)[:, 0::2], np.take_along_axis(rewards, worst, 1)[:, 1::2]
    assert (chosen <= rejected).all() and (worst[:, 0] != worst[:, 1]).all()
    index, preferred = offline.choose("ipo", 0.3, rewards, 2, rng)
    assert (index[:, 0] != index[:, 1]).all()
    np.testing.assert_allclose(preferred.mean(), 1 - 0.5 / 10, atol=0.02)  # one of ten pairs ties
    index, preferred = offline.choose("dpo", 0.3, rewards, 2, rng)
    pair = np.take_along_axis(rewards, index, 1)
    np.testing.assert_allclose(preferred[:, 0], special.expit(pair[:, 0] - pair[:, 1]))
    index, _ = offline.choose("raft", 2.5, rewards, 3, rng)
    share = np.bincount(index.ravel(), minlength=5) / index.size
    np.testing.assert_allclose(share, best_of_n_weights(rewards[:1], 2.5)[0], atol=0.03)


def test_derived_strengths_spend_the_target():
    rng = np.random.default_rng(0)
    table = np.sort(rng.normal(size=(200, 256)) * 3, 1)
    assert offline.strength("dpo", table, 0.5) == pytest.approx(3.0, rel=0.1)  # normal rewards: KL = s^2 / (2 beta^2)
    assert offline.strength("ipo", table, 0.5) == pytest.approx(0.841 / math.sqrt(12), rel=0.03)
    assert best_of_n_kl(offline.strength("raft", table, 0.5)) == pytest.approx(0.5)
    assert offline.strength("dpo(0.7)", table, 0.5) == 0.7


@pytest.mark.parametrize(
    ("method", "words"),
    {
        "raw(2)": "takes no argument",
        "max_at_k": "takes one number",
        "max_at_k(1.5)": "a whole number of at least 1",
        "max_at_k(9)": "config.align.rollouts to be at least 9",
        "bonbon_best(1)": "at least 2",
        "bonbon_worst(65)": "config.calibrate.rollouts",
        "dpo(0)": "a number above 0",
        "dpo(1,2)": "takes one number",
        "ipo(-1)": "a number above 0",
        "raft(log)": "must be a number",
        "bond(1)": "at least 1.1",
        "dpo(": "not of the form",
    }.items(),
)
def test_names_that_cannot_be_trained_are_refused(method, words):
    with pytest.raises(ValueError, match="method") as caught:
        methods.check(method, 8, 64)
    assert words in str(caught.value)


def test_names_of_baselines():
    for method in ("raw", "ppo", "max_at_k(8)", "bond", "bond(2.5)", "dpo", "ipo(0.1)", "bonbon_best(8)", "raft(4)"):
        methods.check(method, 8, 64)
        assert methods.is_baseline(method)
        assert order.align_folder(method, 0).startswith("align/")
    assert not methods.is_baseline("exponential(10)") and methods.by_rank("log") and methods.by_rank("ipo")
    assert not methods.by_rank("dpo(1)")


def small(tmp_path, methods_, steps=2):
    """A workdir with the stages before align done in a few steps, and a config with some methods."""
    config = tiny.get_config()
    with config.unlocked():
        config.sft.steps, config.calibrate.rollouts, config.calibrate.held_out = 4, 8, 4
        config.align.steps, config.align.methods = steps, methods_
    for stage in ("sft", "calibrate", "align"):
        main.run(stage, config, tmp_path)
    return config


def test_rollouts_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "calibrate" / offline.FILE
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 and no more")
    inputs = SimpleNamespace(experiment=SimpleNamespace(config=None, workdir=tmp_path), prompts=None)
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.*\); delete it and start again"):
        offline.reference_rollouts(inputs)


@pytest.mark.slow
def test_every_kind_of_trainer_trains_and_its_folder_loads(tmp_path):
    """PPO keeps its value model to itself; offline methods train on the very responses of the table."""
    names = ("ppo", "bond")
    config = small(tmp_path, names)
    kept = dict(np.load(tmp_path / "calibrate" / "rollouts.npz"))
    table = np.load(tmp_path / "calibrate" / "table.npz")["rewards"]
    np.testing.assert_array_equal(np.sort(kept["rewards"], 1), table)
    assert kept["tokens"].shape == (324, 8, config.data.response_tokens) and kept["mask"].dtype == bool
    reference = load_policy(tmp_path / "sft")
    for name in names:
        folder = tmp_path / order.align_folder(name, 0)
        policy = load_policy(folder)
        assert jax.tree.structure(policy.variables) == jax.tree.structure(reference.variables)
        moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), policy.variables, reference.variables)
        assert max(jax.tree.leaves(moved)) > 1e-4
        rows = metrics.read(folder)
        assert [row["step"] for row in rows] == [0, 1]
        assert all(np.isfinite(value) for row in rows for value in row.values())
    assert metrics.read(tmp_path / order.align_folder("ppo", 0))[0]["kl"] == pytest.approx(0, abs=1e-5)
    with config.unlocked():  # a method added later finds the rollouts, and the others done
        config.align.methods = (*names, "bonbon_best(3)")
    before = (tmp_path / "calibrate" / "rollouts.npz").stat().st_mtime_ns
    main.run("align", config, tmp_path)
    assert (tmp_path / "calibrate" / "rollouts.npz").stat().st_mtime_ns == before


@pytest.mark.slow
def test_all_baselines_through_every_stage(tmp_path):
    config = tiny.get_config()
    with config.unlocked():
        config.align.methods = (
            "log_sigmoid",
            "ppo",
            "max_at_k(2)",
            "bond(3)",
            "dpo",
            "ipo",
            "bonbon_worst(3)",
            "raft(4)",
        )
        config.align.steps, config.align.target_kl = 40, 0.2
    main.run("run", config, tmp_path)
    results = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    standard = {r["method"]: r["win_rate"] for r in results if r["procedure"] == "standard" and r["judge"] == "train"}
    assert set(standard) == set(config.align.methods)
    assert all(rate > 0.5 for method, rate in standard.items() if method != "bonbon_worst(3)"), standard
    assert all(row["theory"] is None for row in results)

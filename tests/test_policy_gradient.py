"""The policy gradient against the exact gradient of an enumerable policy, and its parts against hand-computed values."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from infalign_jax.core.advantages import group_standardize, leave_one_out
from infalign_jax.core.kl_control import beta_from_samples, starting_beta, steer_log_beta
from infalign_jax.core.masking import masked_mean, masked_sum
from infalign_jax.core.policy_gradient import policy_gradient_loss, regularized_return
from infalign_jax.stages import align, offline
from infalign_jax.stages.scores import score_rule

V, C = 3, 2  # a policy over words of two letters: 9 outcomes, all of which can be enumerated
OUTCOMES = np.array(list(itertools.product(range(V), repeat=C)))


def sequence_log_probs(logits, tokens):
    """Autoregressive tabular policy: `first` [V] and `second` [V, V] logits; token log-probs `[..., C]`."""
    first = jax.nn.log_softmax(logits["first"])[tokens[..., 0]]
    second = jax.nn.log_softmax(logits["second"])[tokens[..., 0], tokens[..., 1]]
    return jnp.stack([first, second], -1)


def tabular(seed):
    rng = np.random.default_rng(seed)
    logits = {"first": jnp.asarray(rng.normal(size=V)), "second": jnp.asarray(rng.normal(size=(V, V)))}
    return jax.tree.map(lambda x: x.astype(jnp.float32), logits)


def exact_gradient(logits, reference, scores_O, beta):
    def objective(logits):
        log_p_O = sequence_log_probs(logits, OUTCOMES).sum(-1)
        log_q_O = sequence_log_probs(reference, OUTCOMES).sum(-1)
        return jnp.sum(jnp.exp(log_p_O) * (scores_O - beta * (log_p_O - log_q_O)))

    return jax.grad(objective)(logits)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_gradient_is_unbiased(beta):
    """Mean of many sampled gradients minus the exact one is within five standard errors in every coordinate."""
    logits, reference = tabular(0), tabular(1)
    scores_O = jnp.asarray(np.random.default_rng(2).normal(size=len(OUTCOMES)), jnp.float32)
    log_p_O = sequence_log_probs(logits, OUTCOMES).sum(-1)

    @jax.jit
    @jax.vmap
    def estimate(key):
        drawn_BR = jax.random.categorical(key, log_p_O, shape=(2, 4))
        tokens_BRC = jnp.asarray(OUTCOMES)[drawn_BR]
        mask_BRC = jnp.ones((2, 4, C))
        log_ratios_BR = (sequence_log_probs(logits, tokens_BRC) - sequence_log_probs(reference, tokens_BRC)).sum(-1)
        returns_BR = regularized_return(scores_O[drawn_BR], log_ratios_BR, beta)

        def loss(logits):
            return policy_gradient_loss(sequence_log_probs(logits, tokens_BRC), mask_BRC, returns_BR)

        return jax.grad(loss)(logits)

    samples = estimate(jax.random.split(jax.random.key(3), 40_000))
    exact = exact_gradient(logits, reference, scores_O, beta)
    for name, draws in samples.items():
        mean, error = -draws.mean(0), draws.std(0) / len(draws) ** 0.5
        assert float(error.max()) < 0.01
        np.testing.assert_array_less(np.abs(mean - exact[name]), 5 * error + 1e-6)


def test_gradient_vanishes_at_the_tilted_optimum():
    """At pi ∝ pi_ref exp(score / beta) the return is constant, so every sampled gradient is exactly zero."""
    reference, beta = tabular(1), 0.5
    scores_O = jnp.asarray(np.random.default_rng(2).normal(size=len(OUTCOMES)), jnp.float32)
    log_q_O = sequence_log_probs(reference, OUTCOMES).sum(-1)
    log_p_O = jax.nn.log_softmax(log_q_O + scores_O / beta)
    returns = regularized_return(scores_O, log_p_O - log_q_O, beta)
    np.testing.assert_allclose(leave_one_out(returns[None]), 0.0, atol=1e-5)


def test_masked_tokens_do_not_count():
    log_probs = jnp.log(jnp.array([[[0.5, 0.25], [0.2, jnp.nan]]]))
    mask = jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
    value, gradient = jax.value_and_grad(policy_gradient_loss)(log_probs, mask, jnp.array([[1.0, 0.0]]))
    assert float(value) == pytest.approx(-(np.log(0.125) - np.log(0.2)) / 2, rel=1e-6)
    np.testing.assert_allclose(gradient, [[[-0.5, -0.5], [0.5, 0.0]]])


def test_leave_one_out_by_hand():
    np.testing.assert_allclose(leave_one_out(jnp.array([[1.0, 2.0, 6.0]])), [[-3.0, -1.5, 4.5]], rtol=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(jnp.ones((4, 1)))


def test_group_standardize_removes_scale_but_not_order():
    rewards = jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [5.0, 5.0, 5.0]])
    z = group_standardize(rewards)
    np.testing.assert_allclose(z[0], [-1.2246, 0, 1.2246], atol=1e-3)
    np.testing.assert_allclose(z[0], z[1], atol=1e-3)
    np.testing.assert_allclose(z[2], 0.0)


def test_masked_reductions_ignore_what_is_masked():
    values, mask = jnp.array([[1.0, jnp.inf], [2.0, 3.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(masked_sum(values, mask), [1.0, 5.0])
    assert float(masked_mean(values, mask)) == 2.0
    assert np.isnan(masked_mean(values, jnp.zeros_like(mask)))
    assert np.isfinite(jax.grad(lambda v: masked_sum(v, mask).sum())(values)).all()


def test_beta_from_samples_spends_the_target():
    scores = np.random.default_rng(0).normal(size=(50, 64)) * np.geomspace(0.1, 10, 50)[:, None]
    beta = beta_from_samples(scores, 0.5)
    weights = np.exp(scores / beta - np.max(scores / beta, 1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    kl = np.sum(weights * np.log(np.maximum(weights, 1e-300) * 64), 1)
    assert kl.mean() == pytest.approx(0.5, rel=1e-6)
    # A normal reward of variance s^2 has KL s^2 / (2 beta^2) under exponential tilting.
    normal = np.random.default_rng(1).normal(size=(40, 4096))
    assert beta_from_samples(normal, 0.5) == pytest.approx(1.0, rel=0.05)
    with pytest.raises(ValueError, match="do not vary"):
        beta_from_samples(np.ones((3, 4)), 0.5)
    with pytest.raises(ValueError, match="out of reach"):
        beta_from_samples(np.random.default_rng(0).normal(size=(3, 4)), 5.0)


@pytest.mark.parametrize("kl", [0.1, 1.0, 2.0, 4.0, 6.0])
def test_starting_beta_is_near_that_of_normal_scores_at_every_kl(kl):
    scores = np.random.default_rng(2).normal(size=(300, 64))
    beta = starting_beta(scores, kl)
    assert 1 / 1.4 < beta * np.sqrt(2 * kl) < 1.1  # K samples have light tails, so it errs on the low side
    if kl < np.log(64) / 2:
        assert beta == beta_from_samples(scores, kl)
    elif kl < np.log(64):
        assert beta > 4 * beta_from_samples(scores, kl)


def test_starting_beta_has_no_step_where_samples_end():
    scores, edge = np.random.default_rng(3).normal(size=(50, 64)), np.log(64) / 2
    assert starting_beta(scores, edge * 1.0001) == pytest.approx(starting_beta(scores, edge * 0.9999), rel=1e-3)


def test_stages_start_from_it_and_ties_are_named():
    table = np.sort(np.random.default_rng(4).normal(size=(50, 64)).astype(np.float32), axis=1)
    for method in ("raw", "raw_group_std"):
        assert score_rule(method, table, 4.0)[1] == pytest.approx(starting_beta(table, 4.0), rel=0.1)
    assert offline.strength("dpo", table, 4.0) == starting_beta(table, 4.0) > 4 * beta_from_samples(table, 4.0)
    with pytest.raises(
        ValueError, match=r"a KL of 2.08 nats is out of reach of these scores: 64 samples span \(0, 0.693\)"
    ):
        starting_beta(np.tile([0.0, 1.0], (3, 32)), 4.0)


def test_controller_moves_towards_the_target_within_its_bounds():
    log_beta = jnp.float32(0.0)
    assert float(steer_log_beta(log_beta, 0.5, 0.5, 0.15)) == 0.0
    assert float(steer_log_beta(log_beta, 100.0, 0.5, 0.15)) == pytest.approx(0.15)
    assert float(steer_log_beta(log_beta, 0.0, 0.5, 0.15)) == pytest.approx(-0.075)


def test_stage_align_steers_with_a_gain_that_falls(monkeypatch):
    config = base.get_config()
    monkeypatch.setattr(align, "make_step", lambda *_, **options: options)
    gain = align.build(config, None)[1]["kl_rate"]
    assert float(gain(config.align.kl_warmup)) == pytest.approx(config.align.kl_rate)
    assert float(gain(0)) == float(gain(config.align.steps)) == 0.0


def test_controller_waits_for_a_policy_that_slows_down():
    """A policy whose log KL falls with log beta, follows it at the speed of its learning rate, and is measured with noise."""
    section = base.get_config().align.copy_and_resolve_references()
    with section.unlocked():
        section.steps, section.decay, section.kl_warmup, section.kl_rate = 2400, 0.7, 1200, 0.1
    gain = np.asarray(jax.vmap(align.controller_rate(section))(jnp.arange(2401)))
    assert gain[[0, 1199, 1200, 1560, 2400]] == pytest.approx([0.0, 0.0, 0.1 * 1200 / 1680, 0.05, 0.0])
    speed = 0.1 * np.minimum(np.arange(2400, 0, -1) / 1680, 1.0)

    def swing(gain):
        rng, log_kl, log_beta, kls = np.random.default_rng(0), np.log(0.4), 0.0, []
        for step in range(2400):
            error = np.clip(np.exp(log_kl) * (1 + 0.12 * rng.normal()) / 0.5 - 1, -0.5, 1)
            log_beta += gain[step] * error
            log_kl += speed[step] * (np.log(0.42) - 4 * log_beta - log_kl)
            kls.append(np.exp(log_kl))
        return np.std(kls[-600:]) / 0.5

    assert swing(gain) < 0.03 < 0.04 < swing(np.where(gain > 0, 0.1, 0.0))

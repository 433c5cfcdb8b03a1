"""Amortised calibration: the loss finds quantiles, the map orders them, and both survive what a network may emit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from infalign_jax.core.calibration import calibrate
from infalign_jax.core.diagnostics import calibration_error
from infalign_jax.core.quantiles import monotone_quantiles, pinball_loss

RNG = np.random.default_rng(0)


def levels(count):
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def test_quantiles_increase_and_follow_location_and_scale():
    raw = RNG.normal(size=(4, 3, 9)).astype(np.float32) * 5
    q = np.asarray(monotone_quantiles(raw))
    assert np.all(np.diff(q) >= 0) and q.shape == raw.shape
    np.testing.assert_array_equal(q[..., 4], raw[..., 4])
    np.testing.assert_allclose(monotone_quantiles(raw, 10.0, 2.0), 10 + 2 * q, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q[..., 5] - q[..., 4], np.log1p(np.exp(raw[..., 5])), rtol=1e-4, atol=1e-5)


def test_loss_is_least_at_the_quantiles_of_the_rewards():
    rewards = RNG.gamma(2.0, size=(1, 999)).astype(np.float32)
    tau = levels(5)
    best = np.quantile(rewards, tau, axis=1).T
    at_best = pinball_loss(best, rewards, tau)
    for i in range(5):
        for step in (-0.1, 0.1):
            assert pinball_loss(best + step * np.eye(5)[i], rewards, tau) > at_best
    gradient = jax.grad(pinball_loss)(jnp.float32(best + 0.3), rewards, tau)
    np.testing.assert_allclose(
        gradient[0], [(np.mean(rewards < q) - t) / 5 for q, t in zip(best[0] + 0.3, tau, strict=True)], atol=1e-5
    )


def test_twice_the_loss_is_the_ranked_probability_score():
    tau = levels(400)
    rewards = RNG.normal(size=(1, 50))
    q = stats.norm.ppf(tau.astype(float))[None]
    z = rewards
    score = np.mean(z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(2 * pinball_loss(q, rewards, tau), score, rtol=0.01)


def test_masked_rollouts_do_not_count_nor_poison_the_gradient():
    tau, q = levels(3), jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    rewards, mask = np.array([[0.5, np.nan, 3.0], [1.0, np.inf, np.nan]]), np.array([[1, 0, 1], [1, 0, 0]])
    value, gradient = jax.value_and_grad(pinball_loss)(q, rewards, tau, mask)
    alone = [pinball_loss(q[:1], jnp.array([[r]]), tau) for r in (0.5, 3.0, 1.0)]
    np.testing.assert_allclose(value, np.mean(alone), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_regression_calibrates_new_prompts_without_rollouts():
    """A small network learns location and scale of the rewards from features; a table of 8 rollouts knows less."""
    prompts, k, tau = 300, 8, np.arange(1, 16, dtype=np.float32) / 16  # where order statistics lie
    features = RNG.normal(size=(2 * prompts, 3)).astype(np.float32)
    centre, width = features @ [1.0, -0.5, 0.2], np.exp(0.4 * features[:, 0])
    rewards = (centre[:, None] + width[:, None] * RNG.normal(size=(2 * prompts, k))).astype(np.float32)
    network = {
        "w1": 0.5 * RNG.normal(size=(3, 32)),
        "b1": np.zeros(32),
        "w2": 0.1 * RNG.normal(size=(32, 15)),
        "b2": np.zeros(15),
    }
    network = jax.tree.map(jnp.float32, network)

    def predict(n, x):
        return monotone_quantiles(jnp.tanh(x @ n["w1"] + n["b1"]) @ n["w2"] + n["b2"], rewards.mean(), rewards.std())

    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        n, s = carry
        g = jax.grad(lambda n: pinball_loss(predict(n, features[:prompts]), rewards[:prompts], tau))(n)
        updates, s = optimizer.update(g, s)
        return (optax.apply_updates(n, updates), s), None

    (network, _), _ = jax.lax.scan(step, (network, optimizer.init(network)), length=600)
    u = calibrate(rewards[prompts:], predict(network, features[prompts:]), tails="exponential")
    true = stats.norm.cdf((rewards - centre[:, None]) / width[:, None])[prompts:]
    error = np.mean(abs(np.asarray(u) - true))
    assert error < 0.08  # 8 rollouts: 0.313/√8 = 0.11
    assert calibration_error(u, rewards[prompts:]).low < error < calibration_error(u, rewards[prompts:]).high * 1.2

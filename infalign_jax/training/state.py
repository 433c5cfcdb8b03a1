"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from infalign_jax.training.mesh import replicated


class TrainState(NamedTuple):
    """Everything that training changes, and so everything that a checkpoint holds.

    step: int32, updates done.
    variables: trainable variable collections of the model.
    optimizer: optax state of `variables`.
    log_beta: float32, logarithm of the KL coefficient (unused, 0, outside `align`).
    """

    step: jax.Array
    variables: Any
    optimizer: Any
    log_beta: jax.Array


def init_state(variables, optimizer, beta=1.0):
    """A state at step 0. Pure: under `eval_shape` it costs nothing, under `jit` it is born sharded."""
    log_beta = jnp.log(jnp.asarray(beta, jnp.float32))
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables), log_beta)


def state_shardings(mesh, abstract_state, variable_shardings):
    """Shardings of a state: the optimiser's moments lie where their parameters lie, everything else on every device."""
    everywhere = replicated(mesh)
    params = jax.tree.structure(abstract_state.variables)

    def like_params(node):
        return jax.tree.structure(node) == params

    optimizer = jax.tree.map(
        lambda node: variable_shardings if like_params(node) else jax.tree.map(lambda _: everywhere, node),
        abstract_state.optimizer,
        is_leaf=like_params,
    )
    return TrainState(everywhere, variable_shardings, optimizer, everywhere)


def apply_gradients(state, gradients, optimizer, log_beta=None):
    """One optimiser update. Returns the next state and the norm of the gradient before clipping."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.variables)
    variables = optax.apply_updates(state.variables, updates)
    log_beta = state.log_beta if log_beta is None else log_beta
    return TrainState(state.step + 1, variables, optimizer_state, log_beta), optax.global_norm(gradients)


def adam(schedule, clip_norm):
    """Adam after clipping the global gradient norm: the optimiser of every stage."""
    return optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(schedule))


def warmup_cosine(peak, steps):
    """5 % linear warm-up to `peak`, then a cosine to a tenth of it."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 20, 1), max(steps, 2), 0.1 * peak)


def constant_then_linear(peak, steps, decay):
    """`peak`, falling linearly to 0 over the last `decay` fraction of the steps."""
    tail = max(round(steps * decay), 1)
    return optax.join_schedules([optax.constant_schedule(peak), optax.linear_schedule(peak, 0.0, tail)], [steps - tail])

"""Training on a fixed set of examples: what stages `sft`, `reward-model`, `amortize` and `prefix-scorer` share."""

import functools

import jax

from infalign_jax.data.batches import make_batches
from infalign_jax.training import checkpoints
from infalign_jax.training.loop import restore_or, train
from infalign_jax.training.mesh import put_batch
from infalign_jax.training.state import adam, apply_gradients, init_state, state_shardings, warmup_cosine


def make_supervised_step(loss, optimizer):
    """The jitted step `(state, batch) -> (state, metrics)` on `loss(variables, batch) -> (scalar, metrics)`.

    The state is donated.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.variables, batch)
        state, norm = apply_gradients(state, gradients, optimizer)
        return state, {"loss": value, "gradient_norm": norm, **metrics}

    return step


def fit(make_step, init_variables, shardings, arrays, *, start=(), mesh, section, seed, name, folder, shown, log):
    """Trains variables on examples drawn by the global step; resumes from the newest checkpoint in `folder`.

    Args:
      make_step: `optimizer -> step`, usually `make_supervised_step` with the loss bound.
      init_variables: `(*start) -> variables`, traced under jit so that parameters are born sharded.
      shardings: a sharding for each variable.
      arrays: mapping of host arrays with the examples along their first axis.
      start: trees of parameters to begin from; they are given up.
      mesh: device mesh.
      section: config section with `steps`, `batch_size`, `learning_rate`, `clip_norm`.
      seed, name: the order of the examples is a function of both.
      folder: where checkpoints, metrics and the final variables (`<folder>/variables`) go.
      shown: metrics on the progress bar.
      log: config section with `tensorboard` and `profile_steps`.

    Returns:
      The trained variables and the last step's metrics.
    """
    optimizer = adam(warmup_cosine(section.learning_rate, section.steps), section.clip_norm)
    step_fn = make_step(optimizer)
    batches = make_batches(len(next(iter(arrays.values()))), section.batch_size, seed, name)

    def advance(step, state):
        rows = batches(step)
        return step_fn(state, put_batch(mesh, {key: array[rows] for key, array in arrays.items()}))

    def new_state(*start):
        return init_state(init_variables(*start), optimizer)

    shapes = jax.eval_shape(new_state, *start)
    shardings = state_shardings(mesh, shapes, shardings)
    with checkpoints.open_checkpoints(folder / "checkpoints", keep=1) as manager:
        initial = jax.jit(new_state, out_shardings=shardings, donate_argnums=tuple(range(len(start))))
        state = restore_or(functools.partial(initial, *start), checkpoints.abstract(shapes, shardings), manager)
        state, last = train(
            state, advance, steps=section.steps, title=name, folder=folder, manager=manager,
            save_every=max(section.steps // 2, 1), shown=shown, **log,
        )  # fmt: skip
    checkpoints.save_variables(folder / "variables", state.variables)
    return state.variables, last

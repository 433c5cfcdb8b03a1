"""Checkpoints of a train state: Orbax, asynchronous and atomic."""

import contextlib

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath


@contextlib.contextmanager
def open_checkpoints(folder, *, keep=2):
    """An Orbax manager that keeps the newest `keep` steps; waits for pending saves when it closes."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    manager = ocp.CheckpointManager(epath.Path(folder).resolve(), options=options)
    try:
        yield manager
    finally:
        manager.wait_until_finished()
        manager.close()


def save(manager, step, state):
    """Starts saving `state` as `step` in the background; replaces a checkpoint of that step that could not be read."""
    if step in manager.all_steps():
        manager.delete(step)
    manager.save(step, args=ocp.args.StandardSave(state))


def restore_latest(manager, abstract_state):
    """The newest checkpoint that can be read, already in the shardings of `abstract_state`, or None.

    A checkpoint that cannot be read (a truncated file, say) is named and the one before it is taken.
    """
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        except Exception as error:  # noqa: BLE001  whatever is wrong with this file, the one before it may be whole
            logging.error("checkpoint %s/%d cannot be read (%s); trying the one before it", manager.directory, step, error)
    return None


def abstract(state, shardings):
    """Shapes, types and shardings of a state: what `restore_latest` needs."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def save_variables(folder, variables):
    """Writes final variables of a stage to `folder`, whole or not at all."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(folder).resolve(), variables, force=True)


def load_variables(folder, abstract_variables):
    """Reads the variables of a finished stage into the shardings of `abstract_variables`.

    Raises:
      ValueError: there are none in `folder`.
    """
    folder = epath.Path(folder).resolve()
    if not folder.exists():
        raise ValueError(f"there are no parameters in {folder}; run the stage that makes them first")
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, abstract_variables)

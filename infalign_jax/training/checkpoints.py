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
    """The newest checkpoint that can be read, already in the shardings of `abstract_state`; None if there are none.

    A checkpoint that cannot be read (a truncated file, say) is named and the one before it is taken.

    Raises:
      ValueError: there are checkpoints and none can be read: starting over is for the user to decide.
    """
    error = None
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        except Exception as caught:
            error = caught
            logging.error(
                "checkpoint %s/%d cannot be read (%s); trying the one before it", manager.directory, step, error
            )
    if error is not None:
        raise ValueError(
            f"no checkpoint in {manager.directory} can be read ({_first_line(error)}); delete that folder to begin the "
            "stage anew, or restore it"
        ) from error
    return None


def _first_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


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
      ValueError: there are none in `folder`, they cannot be read, or they are of another model.
    """
    folder = epath.Path(folder).resolve()
    again = f"delete {folder.parent / 'done.json'} and run that stage again: it goes on from its last checkpoint"
    if not folder.exists():
        advice = again if (folder.parent / "done.json").exists() else "run the stage that makes them first"
        raise ValueError(f"there are no parameters in {folder}; {advice}")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder, abstract_variables)
    except Exception as error:  # a storage library has many ways to fail
        raise ValueError(f"the parameters in {folder} cannot be read ({_first_line(error)}); {again}") from error

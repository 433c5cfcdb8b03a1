"""Checkpoints of a train state: Orbax, asynchronous and atomic."""

import contextlib
import sys
import threading
import time

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from infalign_jax.training.distributed import everyone, many
from infalign_jax.training.preemption import Preempted

# Orbax numbers the saves of a process and tells their folders apart by that number: threads that begin two at the same time
# make one's folders twice.
_SAVING = threading.Lock()


@contextlib.contextmanager
def open_checkpoints(folder, *, keep=2, keep_best=0):
    """An Orbax manager that keeps the newest `keep` steps and, besides, the `keep_best` of the highest quality.

    It waits for pending saves when it closes, except where an error ends one of several processes: the others may be gone.
    """
    policies = [managers.LatestN(n=keep)]
    if keep_best:
        policies.append(managers.BestN(get_metric_fn=_quality, n=keep_best, keep_checkpoints_without_metrics=False))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=managers.AnyPreservationPolicy(policies),
        best_fn=_quality if keep_best else None,
        enable_async_checkpointing=True,
        async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier()) if many() else None,
    )
    manager = ocp.CheckpointManager(epath.Path(folder).resolve(), options=options)
    # The loop asks for notices of preemption itself; asked with other numbers, JAX's service would lose count.
    manager.reached_preemption = lambda step: False
    try:
        yield manager
    except BaseException as error:
        if not many() or isinstance(error, Preempted):
            _close(manager)
        raise
    _close(manager)


def _close(manager):
    wait(manager)
    manager.close()


def _barrier():
    """Orbax's barrier between the processes, passed at once by one whose part of a save has failed: nobody else gets there."""
    wait_for_all = ocp.multihost.get_barrier_sync_fn()

    def barrier(*, key, timeout_ms):
        if sys.exc_info()[1] is None:  # Orbax also comes here while the error ends its thread
            wait_for_all(key=key, timeout_ms=timeout_ms)

    return barrier


def wait(manager):
    """Waits until the pending save, if any, is whole; every process must call it.

    Processes ask each other, for Orbax would let them wait twenty minutes for one that failed.

    Raises:
      Exception: what the save failed of, on the process that failed.
      OSError: another process could not save its part.
    """
    error, finished = None, not many()
    while not finished:
        finished = not manager.is_saving_in_progress()
        try:
            if finished:
                manager.wait_until_finished()
        except Exception as raised:  # a storage library has many ways to fail
            error = raised
        if not everyone(error is None):
            raise error or OSError(
                "another process could not save its part of a checkpoint; the one before it is whole"
            )
        finished = everyone(finished)
        time.sleep(0 if finished else 0.02)
    manager.wait_until_finished()


def _quality(metrics):
    return metrics["quality"]


def save(manager, step, state, quality=None):
    """Starts saving `state` as `step` in the background, once the save before it is whole (`wait`).

    It replaces a checkpoint of that step that could not be read.
    """
    wait(manager)
    if step in manager.all_steps():
        manager.delete(step)
    metrics = None if quality is None else {"quality": quality}
    with _SAVING:
        manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)


def restore_latest(manager, abstract_state):
    """The newest checkpoint that can be read, already in the shardings of `abstract_state`; None if there are none.

    A checkpoint that cannot be read (a truncated file, say) is named and the one before it is taken.

    Raises:
      ValueError: there are checkpoints and none can be read: starting over is for the user to decide.
    """
    error = None
    for step in sorted(manager.all_steps(), reverse=True):
        state, caught = None, None
        try:
            state = manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
        except Exception as raised:
            caught = raised
        if everyone(caught is None):
            return state
        error = caught or OSError("another process cannot read its part of it")
        logging.error("checkpoint %s/%d cannot be read (%s); trying the one before it", manager.directory, step, error)
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
    with _SAVING, ocp.StandardCheckpointer() as checkpointer:
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
    except Exception as error:
        raise ValueError(f"the parameters in {folder} cannot be read ({_first_line(error)}); {again}") from error

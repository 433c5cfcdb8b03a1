"""The host loop of every training stage: step, report, save, stop."""

import math
import time

from infalign_jax.reporting.metrics import MetricsWriter
from infalign_jax.reporting.progress import Progress
from infalign_jax.training import checkpoints
from infalign_jax.training.mesh import fetch


def restore_or(initial_state, abstract_state, manager):
    """The newest readable checkpoint, or `initial_state()` where there is none."""
    state = checkpoints.restore_latest(manager, abstract_state)
    return initial_state() if state is None else state


def train(state, advance, *, steps, title, folder, manager, save_every, shown, tensorboard=False):
    """Runs `advance(step, state) -> (state, metrics)` from the state's step to `steps`.

    Metrics are fetched one step late, so that the host never waits for the device to report; they are all in, and all
    finite, before a checkpoint is written, so no checkpoint ever holds a state that has gone wrong.

    Args:
      state: `TrainState` to start from.
      advance: the stage's step: everything it does is a function of the global step.
      steps: total number of updates.
      title: name of the stage on the progress bar and in errors.
      folder: where `metrics.jsonl` goes.
      manager: checkpoint manager.
      save_every: steps between checkpoints; the last step is always saved.
      shown: names of the metrics on the progress bar.
      tensorboard: also write TensorBoard events.

    Returns:
      The final state and the last step's metrics.

    Raises:
      FloatingPointError: a metric is not finite; names it and the step.
    """
    start, last, pending = int(fetch(state.step)), {}, None
    with MetricsWriter(folder, start=start, tensorboard=tensorboard) as writer, Progress(steps, title, start) as bar:
        clock = time.perf_counter()

        def report(step, metrics):
            nonlocal clock
            values = {name: float(value) for name, value in fetch(metrics).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"{title}: {name} is {value} at step {step}; the last checkpoint is intact"
                    )
            now = time.perf_counter()
            values["seconds"], clock = now - clock, now
            writer.write(step, values)
            bar.update(step + 1, {name: values[name] for name in shown})
            return values

        for step in range(start, steps):
            state, metrics = advance(step, state)
            if pending is not None:
                last = report(*pending)
            pending = (step, metrics)
            if (step + 1) % save_every == 0 or step + 1 == steps:
                last, pending = report(*pending), None
                checkpoints.save(manager, step + 1, state)
    return state, last

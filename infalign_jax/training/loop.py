"""The host loop of every training stage: step, report, save, stop."""

import contextlib
import math
import time

from infalign_jax.reporting.metrics import MetricsWriter
from infalign_jax.reporting.progress import Progress
from infalign_jax.training import checkpoints, preemption
from infalign_jax.training.distributed import is_first
from infalign_jax.training.mesh import fetch
from infalign_jax.training.profile import Tracer
from infalign_jax.training.stopwatch import Stopwatch, memory_peaks


def restore_or(initial_state, abstract_state, manager):
    """The newest readable checkpoint, or `initial_state()` where there is none."""
    state = checkpoints.restore_latest(manager, abstract_state)
    return initial_state() if state is None else state


def train(
    state, advance, *, steps, title, folder, manager, save_every, shown, tensorboard=False, profile_steps=(), watch=None,
    quality=None,
):  # fmt: skip
    """Runs `advance(step, state) -> (state, metrics)` from the state's step to `steps`.

    Metrics are fetched one step late, so that the host never waits for the device to report; they are all in, and all
    finite, before a checkpoint is written, so no checkpoint ever holds a state that has gone wrong. On a notice of
    preemption the state is saved at once.

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
      profile_steps: () or (FIRST, LAST), the steps to trace.
      watch: `Stopwatch` whose laps `advance` takes; its phases go into the metrics.
      quality: `metrics -> float`, by which a manager that keeps the best checkpoints ranks them: higher is better. A
        checkpoint gets its mean over the steps since the one before.

    Returns:
      The final state and the last step's metrics.

    Raises:
      FloatingPointError: a metric is not finite; names it and the step.
      Preempted: on a notice of preemption, when everything is saved.
    """
    start, last, pending, qualities = int(fetch(state.step)), {}, None, []
    watch, tracer = watch or Stopwatch(), Tracer(folder, profile_steps)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(MetricsWriter(folder, start, tensorboard=tensorboard)) if is_first() else None
        bar = stack.enter_context(Progress(steps, title, start, quiet=not is_first()))
        stack.callback(tracer.close)
        clock = time.perf_counter()
        watch.skip()

        def report(step, metrics):
            nonlocal clock
            values = _finite(fetch(metrics), title, step)
            now = time.perf_counter()
            times = {"seconds": now - clock, **watch.take(step), **memory_peaks()}
            clock = now
            if quality is not None:
                qualities.append(quality(values))
            if writer is not None:
                writer.write(step, {**values, **times})
            bar.update(step + 1, {name: values[name] for name in shown})
            return {**values, "seconds": times["seconds"]}

        for step in range(start, steps):
            with tracer.step(step, title):
                state, metrics = advance(step, state)
            if pending is not None:
                last = report(*pending)
            pending = (step, metrics)
            tracer.after(step, metrics)
            leaving = preemption.noticed() and step + 1 < steps
            if leaving or (step + 1) % save_every == 0 or step + 1 == steps:
                metrics = fetch(metrics)  # the update is over when its numbers are here
                watch.lap(step, "update")
                last, pending = report(step, metrics), None
                checkpoints.save(manager, step + 1, state, _mean(qualities))
                qualities.clear()
                watch.lap(step + 1, "checkpoint")
                if writer is not None:
                    writer.sync()
            if leaving:
                checkpoints.wait(manager)
                preemption.stop(f"{title}, step {step + 1} of {steps}")
    return state, last


def _finite(metrics, title, step):
    values = {name: float(value) for name, value in metrics.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{title}: {name} is {value} at step {step}; the last checkpoint is intact")
    return values


def _mean(values):
    return sum(values) / len(values) if values else None

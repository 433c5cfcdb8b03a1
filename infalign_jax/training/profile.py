"""Traces of some steps, for XProf, TensorBoard or Perfetto."""

import pathlib
import tempfile

import jax
from etils import epath

from infalign_jax.training.distributed import many

FOLDER = "profile"


class Tracer:
    """Records the steps FIRST to LAST (inclusive) of a loop in `folder`/profile, of each process in a folder of its own.

    `step(step, title)` starts the trace where that is due; `after(step, values)` ends it, once `values` are computed.
    Without steps both do nothing.
    """

    def __init__(self, folder, steps):
        self.folder, self.steps, self.temporary = epath.Path(folder) / FOLDER, steps, None

    def step(self, step, title):
        """A context for the step's work, by which viewers tell steps apart; begins a trace if it is the first asked for."""
        if self.steps and self.temporary is None and self.steps[0] <= step <= self.steps[1]:
            self.temporary = tempfile.TemporaryDirectory(prefix="infalign-profile-")
            jax.profiler.start_trace(self.temporary.name, create_perfetto_trace=jax.process_index() == 0)
        return jax.profiler.StepTraceAnnotation(title, step_num=step)

    def after(self, step, values):
        """Ends the trace when `values`, what the last such step has made, are there."""
        if self.temporary is not None and step >= self.steps[1]:
            jax.block_until_ready(values)
            self.close()

    def close(self):
        """Ends a trace that is running and moves its files into the workdir, which may be a bucket."""
        if self.temporary is None:
            return
        jax.profiler.stop_trace()
        root = pathlib.Path(self.temporary.name)
        folder = self.folder / f"process_{jax.process_index()}" if many() else self.folder
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            target = folder / file.relative_to(root).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        self.temporary.cleanup()
        self.steps, self.temporary = (), None

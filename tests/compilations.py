"""Counts what XLA compiles, for tests that nothing is compiled twice."""

import collections

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts compilations while it is entered: `count` of all, `names` by the name of the jitted function."""

    def __enter__(self):
        self.names = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self

    def listen(self, event, duration, fun_name="", **_):
        if event == EVENT:
            self.names[fun_name.removeprefix("jit(").removesuffix(")")] += 1

    @property
    def count(self):
        return self.names.total()

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.listen)

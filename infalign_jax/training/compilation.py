"""The persistent compilation cache: a second run of the same steps compiles nothing."""

import os
import pathlib

import jax


def use_cache():
    """Turns JAX's compilation cache on, in `$JAX_COMPILATION_CACHE_DIR` or `~/.cache/infalign_jax/xla`.

    A cache that cannot be made (a read-only home) is left off: it only saves time.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "infalign_jax" / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

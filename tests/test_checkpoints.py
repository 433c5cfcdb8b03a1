"""Saves that threads begin at the same time, as `align.at_once` does: each whole, in its own folder."""

import threading
import time

import jax.numpy as jnp
import numpy as np

from infalign_jax.training import checkpoints

_LONGEST = 60  # seconds in which every thread has ended, or has failed


def _variables(number):
    return {"params": {"a": jnp.full((64, 64), number), "b": {"c": jnp.arange(100.0)}}}


def test_policies_that_end_at_the_same_time_are_all_saved(tmp_path):
    outcome = {}

    def save(number):
        try:
            with checkpoints.open_checkpoints(tmp_path / str(number) / "checkpoints") as manager:
                for step in (1, 2):
                    checkpoints.save(manager, step, _variables(number))
            checkpoints.save_variables(tmp_path / str(number) / "variables", _variables(number))
            outcome[number] = "saved"
        except Exception as error:
            outcome[number] = repr(error)

    # Saves that get in each other's way may wait for ever; pytest does not wait for daemons.
    threads = [threading.Thread(target=save, args=(number,), daemon=True) for number in range(10)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + _LONGEST
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    assert outcome == dict.fromkeys(range(10), "saved"), f"not all have ended well after {_LONGEST} s at the most"
    for number in range(10):
        loaded = checkpoints.load_variables(tmp_path / str(number) / "variables", _variables(number))
        np.testing.assert_array_equal(loaded["params"]["a"], number)
        with checkpoints.open_checkpoints(tmp_path / str(number) / "checkpoints") as manager:
            assert checkpoints.restore_latest(manager, _variables(number))["params"]["a"][0, 0] == number

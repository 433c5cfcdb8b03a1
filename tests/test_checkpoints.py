"""Saves that threads begin at the same time, as `align.at_once` does: each whole, in its own folder."""

from concurrent import futures

import jax.numpy as jnp
import numpy as np

from infalign_jax.training import checkpoints


def test_policies_that_end_at_the_same_time_are_all_saved(tmp_path):
    def save(place):
        number, folder = place
        variables = {"params": {"a": jnp.full((64, 64), number), "b": {"c": jnp.arange(100.0)}}}
        with checkpoints.open_checkpoints(folder / "checkpoints") as manager:
            for step in (1, 2):
                checkpoints.save(manager, step, variables)
        checkpoints.save_variables(folder / "variables", variables)
        return variables

    places = [(number, tmp_path / str(number)) for number in range(10)]
    with futures.ThreadPoolExecutor(5) as pool:
        saved = list(pool.map(save, places))
    for (number, folder), variables in zip(places, saved, strict=True):
        loaded = checkpoints.load_variables(folder / "variables", variables)
        np.testing.assert_array_equal(loaded["params"]["a"], number)
        with checkpoints.open_checkpoints(folder / "checkpoints") as manager:
            assert checkpoints.restore_latest(manager, variables)["params"]["a"][0, 0] == number

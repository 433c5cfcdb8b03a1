"""Preference pairs to a `Dataset`: halves for reward model and judge, distinct prompts, nothing held out leaking into
training.
"""

import numpy as np
from absl import logging

from infalign_jax.data.dataset import Dataset, Demonstration, Prompt


def split_by_prompt(rows, fraction, seed, purpose):
    """`(rest, part)`: about `fraction` of the distinct prompts, with all their rows, go to `part`; order is kept.

    Rows have a `.prompt`. A fraction above 0 takes at least one prompt, one below 1 leaves at least one where there
    are two.
    """
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    count = round(fraction * len(prompts))
    count = max(count, min(1, len(prompts))) if fraction > 0 else 0
    count = min(count, max(len(prompts) - 1, 1)) if fraction < 1 else count
    order = np.random.default_rng([seed, purpose]).permutation(len(prompts))
    chosen = {prompts[index] for index in order[:count]}
    return [row for row in rows if row.prompt not in chosen], [row for row in rows if row.prompt in chosen]


def assemble(train, test, *, judge_fraction, seed):
    """A `Dataset` of preference pairs: chosen responses as demonstrations, every distinct prompt once.

    A test pair whose prompt also occurs in training is left out, and the count is said aloud. `judge_fraction` of the
    training prompts, with their pairs, go to `judge_preferences`.
    """
    seen = {row.prompt for row in train}
    fresh = [row for row in test if row.prompt not in seen]
    if len(fresh) < len(test):
        logging.warning(
            "%d of %d test pairs were left out: their prompts occur in training", len(test) - len(fresh), len(test)
        )
    preferences, judge_preferences = split_by_prompt(train, judge_fraction, seed, purpose=1)
    return Dataset(
        demonstrations=[Demonstration(row.prompt, row.chosen) for row in train],
        preferences=preferences,
        judge_preferences=judge_preferences,
        held_out_preferences=fresh,
        train_prompts=[Prompt(text) for text in dict.fromkeys(row.prompt for row in train)],
        test_prompts=[Prompt(text) for text in dict.fromkeys(row.prompt for row in fresh)],
    )


def require_fraction(name, value):
    """`value` as a float in [0, 1], else a ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; it must be a number from 0 to 1")
    return float(value)

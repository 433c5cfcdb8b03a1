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


def assemble(train, test, *, judge_fraction, train_prompts, test_prompts, seed):
    """A `Dataset` of preference pairs: chosen responses as demonstrations, every distinct prompt once.

    Test pairs are those `without_seen` prompts. `judge_fraction` of the training prompts, with their pairs, go to
    `judge_preferences`; `train_prompts` and `test_prompts` limit the prompts to align and to evaluate on (0: all).
    """
    fresh = without_seen(test, train)
    preferences, judge_preferences = split_by_prompt(train, judge_fraction, seed, purpose=1)
    return Dataset(
        demonstrations=[Demonstration(row.prompt, row.chosen) for row in train],
        preferences=preferences,
        judge_preferences=judge_preferences,
        held_out_preferences=fresh,
        train_prompts=keep_some(_distinct(train), train_prompts, seed),
        test_prompts=keep_some(_distinct(fresh), test_prompts, seed),
    )


def without_seen(test, train):
    """The test rows whose prompt does not occur in training; how many do is said aloud."""
    seen = {row.prompt for row in train}
    fresh = [row for row in test if row.prompt not in seen]
    if len(fresh) < len(test):
        left_out = len(test) - len(fresh)
        logging.warning("%d of %d test rows were left out: their prompts occur in training", left_out, len(test))
    return fresh


def _distinct(rows):
    return [Prompt(text) for text in dict.fromkeys(row.prompt for row in rows)]


def keep_some(items, count, seed):
    """`count` of the items drawn by the seed, their order kept; all of them for 0 or where there are no more."""
    if count == 0 or count >= len(items):
        return items
    return [items[index] for index in sorted(np.random.default_rng([seed, 2]).permutation(len(items))[:count])]


def require_fraction(name, value):
    """`value` as a float in [0, 1], else a ValueError naming the option."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; it must be a number from 0 to 1")
    return float(value)

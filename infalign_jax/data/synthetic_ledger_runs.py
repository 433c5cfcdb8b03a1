"""The ledger task with a speaker who looks back: an entry suits the more often, the longer the run of suiting ones before it.

Prompts, entries, suiting and rewards are those of `synthetic_ledger`. A reference policy that has learnt this speaker has learnt
to see runs, on which rewards depend; that of the other speaker has no cause to.
"""

import functools

import numpy as np

from infalign_jax.data import synthetic_ledger as ledger

SUITS_AFTER = np.array([0.5, 0.6, 0.75, 0.9, 0.95])  # a run of 0, 1, 2, 3, 4 and more


@functools.lru_cache(1, typed=True)  # every stage of a run opens the same data
def load(*, path, seed, test_prompts, demonstrations_per_prompt, preferences_per_prompt):
    """As `synthetic_ledger.load`."""
    return ledger.spoken_by(speak, path, seed, test_prompts, demonstrations_per_prompt, preferences_per_prompt)


def speak(prompts, suits, rng):
    """One response of the speaker to each prompt: lengths as in `synthetic_ledger.speak`, entries by `SUITS_AFTER`."""
    own_NE = ledger.own_entries(prompts, suits)
    n = len(own_NE)
    other_NE = np.array([np.setdiff1d(np.arange(len(ledger.ENTRIES)), own_E) for own_E in own_NE], int).reshape(n, -1)
    ids_NT, run_N, last_N = np.zeros((n, ledger.MAX_ENTRIES), int), np.zeros(n, int), np.full(n, -1)
    for place in range(ledger.MAX_ENTRIES):
        suits_N = rng.random(n) < SUITS_AFTER[np.minimum(run_N, len(SUITS_AFTER) - 1)]
        own_N, other_N = (x_NE[np.arange(n), rng.integers(0, x_NE.shape[1], n)] for x_NE in (own_NE, other_NE))
        ids_NT[:, place] = np.where(suits_N, own_N, other_N)
        run_N = np.where(suits_N, np.where(ids_NT[:, place] == last_N, 1, run_N + 1), 0)
        last_N = ids_NT[:, place]
    words_NT, lengths_N = np.array(ledger.ENTRIES)[ids_NT].tolist(), rng.choice(ledger.LENGTHS, n).tolist()
    return [" ".join(row[:length]) for row, length in zip(words_NT, lengths_N, strict=True)]

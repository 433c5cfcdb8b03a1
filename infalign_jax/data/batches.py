"""Batches as a pure function of the global step: a resumed or re-sharded run sees exactly the same data."""

import functools
import zlib

import grain
import numpy as np

from infalign_jax.data.dataset import require_count


class _ShuffledBatches:
    """Random-access source: element `step` holds the example indices of that batch.

    Epochs are laid end to end, each in its own order, and cut into batches: no example is dropped, and a batch may
    straddle two epochs. One numpy permutation an epoch costs far less than shuffling index by index.
    """

    def __init__(self, n_examples, batch_size, seed, purpose):
        self._n, self._size = n_examples, batch_size
        self._entropy = [seed, zlib.crc32(purpose.encode())]
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)

    def _epoch_order(self, epoch):
        return np.random.default_rng([*self._entropy, epoch]).permutation(self._n)

    def __len__(self):
        return 2**48  # as good as endless, and a length Grain can multiply without overflow

    def __getitem__(self, step):
        first, past = step * self._size, (step + 1) * self._size
        epochs = range(first // self._n, (past - 1) // self._n + 1)
        parts = [self._order(e)[max(first - e * self._n, 0) : past - e * self._n] for e in epochs]
        return np.concatenate(parts)


def batch_dataset(n_examples, batch_size, seed, purpose):
    """A Grain `MapDataset` whose element `step` is the int64 array `[batch_size]` of example indices of that step.

    Args:
      n_examples: size of the dataset. Fewer than `batch_size`: a batch holds whole epochs, then a part of one.
      batch_size: examples a step, over all hosts.
      seed, purpose: an integer and a name ('sft', 'align', ...); another pair gives an independent order.

    Returns:
      The dataset; over every n_examples consecutive draws from an epoch start each example comes exactly once.

    Raises:
      ValueError: no examples, a batch size below 1, or a negative seed.
    """
    if n_examples == 0:
        raise ValueError(f"there are no examples for {purpose!r}; at least one is needed to make batches")
    n_examples = require_count("n_examples", n_examples, 1)
    batch_size, seed = require_count("batch_size", batch_size, 1), require_count("seed", seed)
    return grain.MapDataset.source(_ShuffledBatches(n_examples, batch_size, seed, purpose))


def make_batches(n_examples, batch_size, seed, purpose):
    """`batch_dataset` as a plain function `step -> int64 [batch_size]` of example indices; well under 1 ms a step."""
    dataset = batch_dataset(n_examples, batch_size, seed, purpose)
    return lambda step: dataset[int(step)]

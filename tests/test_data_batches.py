"""Batches are a pure function of the step: coverage of epochs, independence of access order, speed, bad input."""

import time

import numpy as np
import pytest

from infalign_jax.data import batches


@pytest.mark.parametrize(("n", "size"), [(10, 3), (12, 4), (7, 7), (1000, 64)])
def test_every_epoch_holds_each_example_once(n, size):
    batch = batches.make_batches(n, size, 0, "sft")
    drawn = np.concatenate([batch(step) for step in range(3 * n)])
    assert all(batch(step).shape == (size,) for step in range(5))
    for epoch in range(3):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_batches_larger_than_the_dataset_wrap_whole_epochs():
    first = batches.make_batches(5, 12, 0, "align")(0)
    assert sorted(first[:5]) == sorted(first[5:10]) == list(range(5)) and len(first) == 12


def test_a_batch_depends_on_the_step_alone():
    forward = batches.make_batches(50, 8, 1, "sft")
    in_order = [forward(step) for step in range(40)]
    jumping = batches.make_batches(50, 8, 1, "sft")
    for step in np.random.default_rng(0).permutation(40):
        assert np.array_equal(jumping(step), in_order[step])
    assert np.array_equal(jumping(10**9), batches.make_batches(50, 8, 1, "sft")(10**9))


def test_epochs_seeds_and_purposes_have_their_own_order():
    def order(n, seed, purpose, epoch):
        return tuple(batches.make_batches(n, n, seed, purpose)(epoch))

    orders = {order(40, *key) for key in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0)]}
    assert len(orders) == 4


def test_shuffle_is_uniform():
    """Position of example 0 over 4,000 epochs of 8: chi-square with 7 degrees of freedom below its 1e-4 quantile."""
    batch = batches.make_batches(8, 8, 0, "x")
    counts = np.bincount([int(np.flatnonzero(batch(epoch) == 0)[0]) for epoch in range(4000)], minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 29.9


def test_the_grain_dataset_can_be_mapped():
    dataset = batches.batch_dataset(20, 4, 0, "sft").map(lambda indices: indices * 10)
    assert np.array_equal(dataset[3], batches.make_batches(20, 4, 0, "sft")(3) * 10)


def test_steps_take_well_under_a_millisecond():
    batch = batches.make_batches(17_000, 256, 0, "sft")
    batch(0)
    start = time.process_time()
    for step in range(200):
        batch(step)
    assert (time.process_time() - start) / 200 < 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 4, 0, "sft"), "no examples for 'sft'"),
        ((4, 0, 0, "sft"), "batch_size is 0"),
        ((4, 2, -1, "sft"), "seed is -1"),
    ],
)
def test_bad_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        batches.make_batches(*arguments)

"""The order of the training data: every window once an epoch, from step and seed alone."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from gpt2c.data import Dataset, Tokens, order
from gpt2c.data.prefetch import Prefetch

CONTEXT = 8
SIZES = (1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 4097, 65_537)
PINNED = [695, 966, 442, 339, 333, 532, 893, 300]
PINNED_OFFSETS = [638, 9, 238, 462]


def counting(length: int) -> Dataset:
    """A training split of 0, 1, 2, ...: a batch tells where it comes from."""
    return Dataset(Tokens([np.arange(length), np.arange(100)]), length)


def starts(dataset: Dataset, first: int, count: int, seed: int = 1) -> list[int]:
    return dataset.starts(np.arange(first, first + count), seed, CONTEXT).tolist()


@pytest.mark.parametrize("size", SIZES)
def test_a_permutation(size: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (1, 1), (2**63 - 1, 10**6)):
        taken = order.permutation(np.arange(size), size, seed, epoch)
        assert sorted(taken.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [10**7 + 19, 2**40 - 87, 2**62])
def test_a_large_permutation_is_one_to_one(size: int) -> None:
    index = np.unique(
        np.concatenate([np.arange(50_000), size - 1 - np.arange(50_000), np.arange(50_000) * (size >> 17)])
    )
    taken = order.permutation(index, size, seed=3, epoch=5)
    assert len(np.unique(taken)) == len(index) and taken.min() >= 0 and taken.max() < size


def test_a_permutation_of_an_index_does_not_depend_on_the_others() -> None:
    whole = order.permutation(np.arange(1000), 1000, 7, 2)
    some = np.array([[999, 3], [3, 500]])
    assert np.array_equal(order.permutation(some, 1000, 7, 2), whole[some])


def test_a_permutation_looks_random() -> None:
    """No correlation with the identity, with a neighbour, nor between seeds and epochs: 5 standard deviations."""
    size = 100_003
    index = np.arange(size)
    orders = [order.permutation(index, size, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    pairs = [(index, orders[0]), (orders[0][1:], orders[0][:-1]), (orders[0], orders[1]), (orders[0], orders[2])]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / size**0.5
    counts = np.histogram(orders[0][: size // 10], bins=100, range=(0, size))[0]  # the first tenth, evenly from all
    assert abs(counts - 100).max() < 50


def test_all_permutations_of_few_are_equally_likely() -> None:
    found = [tuple(order.permutation(np.arange(3), 3, 7, epoch).tolist()) for epoch in range(1200)]
    assert len(set(found)) == 6
    assert max(abs(found.count(one) - 200) for one in set(found)) < 65  # 5 standard deviations


def test_the_order_is_what_it_was() -> None:
    assert order.permutation(np.arange(8), 1000, seed=42, epoch=3).tolist() == PINNED, (
        "the order of the data changed: runs begun with an older version would not resume bit for bit"
    )
    assert [order.offset(1024, 42, epoch) for epoch in range(4)] == PINNED_OFFSETS


def test_an_index_outside_is_refused() -> None:
    for index, size in ((-1, 5), (5, 5), (0, 0)):
        with pytest.raises(ValueError, match="expected indices"):
            order.permutation(np.array([index]), size, 0, 0)


@pytest.mark.parametrize("length", [9, 10, 15, 16, 17, 23, 24, 25, 100, 801, 1000])
def test_every_window_once_an_epoch(length: int) -> None:
    dataset = counting(length)
    count = dataset.windows(CONTEXT)
    for epoch in range(5):
        found = sorted(starts(dataset, epoch * count, count))
        assert np.diff(found).tolist() == [CONTEXT] * (count - 1)  # consecutive: no token twice
        assert found[0] < CONTEXT and found[-1] + CONTEXT + 1 <= length
        assert count * CONTEXT > length - 2 * CONTEXT  # hardly a token is left out


def test_the_cuts_vary() -> None:
    dataset = counting(1000)
    count = dataset.windows(CONTEXT)
    firsts = {min(starts(dataset, epoch * count, count)) for epoch in range(100)}
    assert firsts == set(range(CONTEXT))


def test_the_order_differs_between_epochs_and_seeds() -> None:
    dataset = counting(1000)
    count = dataset.windows(CONTEXT)
    orders = [starts(dataset, epoch * count, count, seed) for epoch in range(3) for seed in (1, 2)]
    assert len({tuple(np.array(one) - min(one)) for one in orders}) == 6


def test_a_batch_across_epochs() -> None:
    dataset = counting(41)  # 4 windows
    rows = dataset.train_batch(1, 1, 0, 1, 10, CONTEXT)[0][:, 0].tolist()
    assert rows == starts(dataset, 0, 4) + starts(dataset, 4, 4) + starts(dataset, 8, 2)


def test_micro_steps_and_processes_see_the_windows_of_the_large_batch() -> None:
    """However a step is cut, it has the same windows, no window twice, and the next step the next ones."""
    dataset = counting(4000)
    whole = [dataset.train_batch(5, step, 0, 1, 12, CONTEXT)[0][:, 0].tolist() for step in (1, 2, 3)]
    assert sum(whole, []) == starts(dataset, 0, 36, seed=5)
    for micro_steps in (2, 3, 4, 6, 12):
        for step in (1, 2, 3):
            parts = [
                dataset.train_batch(5, step, i, micro_steps, 12 // micro_steps, CONTEXT)[0][:, 0].tolist()
                for i in range(micro_steps)
            ]
            assert sum(parts, []) == whole[step - 1]
    assert len(set(sum(whole, []))) == 36


# Prefetching


def test_prefetch_gives_all_steps_in_order() -> None:
    with Prefetch(lambda step: step * step, 3, 20) as results:
        with pytest.raises(ValueError, match="step 5 is not prepared next: expected 3, up to 20"):
            results.get(5)
        assert [results.get(step) for step in range(3, 21)] == [step * step for step in range(3, 21)]
        with pytest.raises(ValueError, match="step 21"):
            results.get(21)


def test_prefetch_raises_in_get_what_make_raised_and_only_then() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise KeyError("three")
        return step

    with Prefetch(make, 1, 10) as results:
        assert [results.get(1), results.get(2)] == [1, 2]
        with pytest.raises(KeyError, match="three"):
            results.get(3)
        with pytest.raises(ValueError, match="step 3"):
            results.get(3)


def test_prefetch_runs_ahead_by_its_depth_alone() -> None:
    made: list[int] = []
    reached = threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 4:
            reached.set()
        return step

    with Prefetch(make, 1, 1000, depth=3) as results:
        assert reached.wait(60), "the thread does not run ahead"  # 3 in the queue, the fourth waits for a place
        time.sleep(0.05)  # a fifth would come now
        assert len(made) == 4
        assert results.get(1) == 1
    assert len(made) <= 5
    assert not [thread for thread in threading.enumerate() if "_run" in thread.name]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_prefetch_ends_when_the_block_is_left_early(taken: int) -> None:
    with pytest.raises(RuntimeError, match="stop"), Prefetch(lambda step: step, 1, 10**9) as results:
        for step in range(1, taken + 1):
            results.get(step)
        raise RuntimeError("stop")
    assert not results._thread.is_alive()

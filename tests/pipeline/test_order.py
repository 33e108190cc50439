"""The order of images: every image exactly once an epoch, whoever asks, and from any point."""

from __future__ import annotations

import hashlib
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.world import World
from pipeline.order import FullShuffle, Order, Shuffle, WindowShuffle, flips, permute, permute_each

SEEDS = st.integers(0, 2**62)
SHUFFLES = st.one_of(
    st.just(FullShuffle()),
    st.builds(
        WindowShuffle,
        block=st.integers(1, 40),
        lanes=st.integers(1, 20),
        window=st.integers(1, 60),
    ),
)
BIG_WINDOWS = WindowShuffle(block=21_845, lanes=32, window=21_845)
GOLDEN = [  # number of images, seed, sha256 of their order; of the version before this file
    (7, 0, "e62b8a530af19ab1"),
    (7, 5, "c17a2f8ccb72528c"),
    (1000, 0, "81609745faa0b7b2"),
    (60_000, 0, "68bf7dcc74315bf7"),
    (10**7, 3, "dcf07cc8e5574ff1"),
    (10**8, 5, "e11338a16c80c700"),
    (5 * 10**9, 5, "aadf7a28f2890d7f"),
]


class Labelled:
    """The classes of labels held in memory."""

    def __init__(self, labels: np.ndarray, classes: int):
        self.counts = np.bincount(labels, minlength=classes).tolist()
        self._rows = [np.flatnonzero(labels == label) for label in range(classes)]

    def numbers(self, label: int, ranks: np.ndarray) -> np.ndarray:
        return self._rows[label][ranks]


@given(size=st.integers(1, 3000), key=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_permutation_has_every_element_once(size, key):
    assert sorted(permute(np.arange(size), size=size, key=key)) == list(range(size))


@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=12), key=SEEDS)
@settings(max_examples=60, deadline=None)
def test_permutations_of_several_sizes_do_not_depend_on_each_other(sizes, key):
    numbers = np.concatenate([np.arange(size) for size in sizes])
    each = np.repeat(sizes, sizes)
    keys = np.repeat(np.arange(len(sizes), dtype=np.uint64) + np.uint64(key), sizes)
    together = permute_each(numbers, sizes=each, keys=keys)
    start = 0
    for size in sizes:
        piece = slice(start, start + size)
        alone = permute_each(numbers[piece], sizes=each[piece], keys=keys[piece])
        assert together[piece].tolist() == alone.tolist()
        assert sorted(alone) == list(range(size))
        start += size


def shared_stream(
    order: Order, batch_size: int, worlds: list[int], *, batches: range
) -> list[int]:
    """What all ranks take, in global order, the world changing from batch to batch."""
    taken = []
    for batch in batches:
        size = worlds[batch % len(worlds)]
        for rank in range(size):
            share = World(rank, size).share(batch_size)
            positions = np.arange(share.start, share.stop) + batch * batch_size
            taken += order.numbers(positions).tolist()
    return taken


@given(
    num_images=st.integers(1, 150),
    shuffle=SHUFFLES,
    batch_size=st.integers(1, 40),
    worlds=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    restart=st.integers(0, 30),
    seed=SEEDS,
)
@settings(max_examples=60, deadline=None)
def test_every_image_comes_once_an_epoch_in_one_order_whoever_asks_and_from_any_point(
    num_images, shuffle, batch_size, worlds, restart, seed
):
    order = Order(num_images=num_images, seed=seed, shuffle=shuffle)
    batches = -(-2 * num_images // batch_size)
    alone = order.numbers(np.arange(batches * batch_size)).tolist()
    for epoch in range(2):
        part = alone[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(part) == list(range(num_images))
    assert shared_stream(order, batch_size, worlds, batches=range(batches)) == alone
    rest = range(min(restart, batches), batches)
    assert (
        shared_stream(order, batch_size, worlds[::-1], batches=rest)
        == (alone[rest.start * batch_size :])
    )


@given(
    labels=st.lists(st.integers(0, 3), min_size=4, max_size=80),
    weights=st.tuples(*[st.integers(0, 3)] * 4).filter(any),
    shuffle=SHUFFLES,
    batch_size=st.integers(8, 60),
    worlds=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    seed=SEEDS,
)
@settings(max_examples=30, deadline=None)
def test_classes_come_in_their_shares_and_their_images_equally_often(
    labels, weights, shuffle, batch_size, worlds, seed
):
    known = np.array([0, 1, 2, 3, *labels])  # no class is empty
    order = Order(
        num_images=len(known),
        seed=seed,
        shuffle=shuffle,
        classes=Labelled(known, 4),
        weights=weights,
    )
    rounds = len(known)
    alone = order.numbers(np.arange(rounds * sum(weights)))
    drawn = known[alone].reshape(rounds, sum(weights))
    for label, weight in enumerate(weights):
        assert ((drawn == label).sum(1) == weight).all()
        for end in range(0, rounds, 5):
            times = np.bincount(alone[: end * sum(weights)], minlength=len(known))
            assert np.ptp(times[known == label]) <= 1
    batches = len(alone) // batch_size
    taken = shared_stream(order, batch_size, worlds, batches=range(batches))
    assert taken == alone[: batches * batch_size].tolist()


def test_the_full_shuffle_is_the_one_that_runs_of_earlier_versions_were_begun_with():
    for num_images, seed, expected in GOLDEN:
        positions = np.arange(0, 20_000, 3) + num_images - 100
        numbers = FullShuffle().numbers(positions, num_images=num_images, seed=seed)
        assert hashlib.sha256(numbers.tobytes()).hexdigest()[:16] == expected


@pytest.mark.parametrize(
    "shuffle", [FullShuffle(), WindowShuffle(block=2, lanes=4, window=60)], ids=["full", "window"]
)
def test_epochs_and_seeds_are_shuffled_apart(shuffle):
    first = shuffle.numbers(np.arange(1000), num_images=1000, seed=0)
    second = shuffle.numbers(np.arange(1000, 2000), num_images=1000, seed=0)
    other = shuffle.numbers(np.arange(1000), num_images=1000, seed=1)
    for a, b in ((first, second), (first, other), (first, np.arange(1000))):
        assert (a == b).sum() < 10  # 1 by chance, on average
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


@pytest.mark.parametrize("shuffle", [FullShuffle(), BIG_WINDOWS], ids=["full", "window"])
def test_a_hundred_million_images_need_no_table_and_any_place_is_found_at_once(shuffle: Shuffle):
    def seconds(*places: int) -> float:
        begun = time.process_time()
        for first in places:
            numbers = shuffle.numbers(np.arange(first, first + 256), num_images=10**8, seed=0)
            assert ((numbers >= 0) & (numbers < 10**8)).all()
        return time.process_time() - begun

    seconds(0)
    tracemalloc.start()
    near = seconds(0, 256, 512, 768)
    far = seconds(10**8 - 100, 10**8 + 3, 5 * 10**8 + 3, 10**15)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18
    assert far < 20 * near


def chi_square(numbers: np.ndarray, *, num_images: int, classes: int) -> float:
    """Per degree of freedom, of the classes in batches of 250; 1 where batches are drawn freely.

    The images are sorted by class, which is the hardest case.
    """
    labels = (numbers * classes // num_images).reshape(-1, 250)
    counts = np.stack([(labels == label).sum(1) for label in range(classes)])
    expected = 250 / classes
    return float(((counts - expected) ** 2 / expected).sum() / (counts.shape[1] * (classes - 1)))


def test_batches_are_as_mixed_as_free_draws_and_nearly_so_from_windows():
    positions, counts = np.arange(60_000), {"num_images": 60_000, "classes": 10}

    def mixed(shuffle: Shuffle) -> float:
        return chi_square(shuffle.numbers(positions, num_images=60_000, seed=0), **counts)

    assert mixed(FullShuffle()) == pytest.approx(1, abs=0.15)
    # 60 blocks of one class or two; the lanes hold a quarter and more of them at a time.
    assert mixed(WindowShuffle(block=1000, lanes=16, window=2000)) < 4
    assert mixed(WindowShuffle(block=1000, lanes=1, window=1000)) > 100  # what lanes are for


def test_where_a_window_puts_an_image_is_bounded_and_uniform():
    shuffle, num_images, seeds = WindowShuffle(block=50, lanes=4, window=25), 1000, 1500
    apart, places = 2 * 4 * 25, []
    for seed in range(seeds):
        numbers = shuffle.numbers(np.arange(num_images), num_images=num_images, seed=seed)
        position = np.argsort(numbers)  # of each image
        block = position[500:550]  # 50 neighbours; a lane has them in windows that touch
        for lane in range(4):
            own = block[block % 4 == lane]
            assert len(own) == 0 or np.ptp(own) < apart + 4 * 50
        places.append(position[517])
    # As many places in each of 20 bins as free draws would be: chi-square at 0.1 %.
    counts = np.histogram(places, bins=20, range=(0, num_images))[0]
    assert ((counts - seeds / 20) ** 2 / (seeds / 20)).sum() < 43.8


def test_half_of_the_images_are_mirrored_each_by_its_position_alone():
    tosses = flips(np.arange(100_000), seed=0)
    assert tosses.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(tosses[1:], tosses[:-1])[0, 1]) < 0.02
    assert (flips(np.arange(500, 600), seed=0) == tosses[500:600]).all()
    assert (flips(np.arange(100_000), seed=1) == tosses).mean() == pytest.approx(0.5, abs=0.01)

"""The order of images: image number `position` of the endless stream is a pure function of
(seed, position).

It belongs to the experiment. Each epoch is a pseudo-random permutation of the whole set, computed
and not stored, so the stream can be entered anywhere by any number of workers, and every image
comes exactly once an epoch. Memory and the time to begin do not grow with the set.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gan.seeds import derive_seed

ROUNDS = (
    6  # of the Feistel network; 4 already give a pseudo-random permutation (Luby & Rackoff 1988)
)
TABLE_BITS = 12  # 16 KiB a round: sets of up to 2^24 images
MULTIPLIER = np.uint64(0xD1342543DE82EF95)  # of a generator mod 2^64 (Steele & Vigna 2021)


def permute(numbers: np.ndarray, *, size: int, key: int) -> np.ndarray:
    """Element numbers of a pseudo-random permutation of range(size), in constant memory.

    A balanced Feistel network on the smallest even number of bits that holds `size`; results
    outside are fed back until they fall inside (cycle walking), which keeps it a bijection.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    functions = [_round_function(half_bits, key, index) for index in range(ROUNDS)]
    # Of half the width, where that holds them, they are moved in half the time.
    dtype = np.uint32 if half_bits <= 16 else np.uint64
    half, mask = dtype(half_bits), dtype(2**half_bits - 1)

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for function in functions:
            left ^= function(right)
            left, right = right, left
        left <<= half
        left |= right
        return left

    result = once(numbers.astype(dtype))
    outside = np.flatnonzero(result >= size)
    while len(outside):
        result[outside] = once(result[outside])
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _round_function(half_bits: int, key: int, index: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function of `half_bits` bits of one round: looked up, where the table is small."""
    if half_bits <= TABLE_BITS:
        return _round_table(half_bits, key, index).take
    round_key, mask = np.uint64(derive_seed(key, "feistel", index)), np.uint64(2**half_bits - 1)
    dtype = np.uint32 if half_bits <= 16 else np.uint64
    return lambda right: (_mix(right.astype(np.uint64) ^ round_key) & mask).astype(dtype)


@functools.lru_cache(maxsize=8 * ROUNDS)  # of two epochs of four orders
def _round_table(half_bits: int, key: int, index: int) -> np.ndarray:
    round_key, mask = np.uint64(derive_seed(key, "feistel", index)), np.uint64(2**half_bits - 1)
    return (_mix(np.arange(2**half_bits, dtype=np.uint64) ^ round_key) & mask).astype(np.uint32)


def permute_each(numbers: np.ndarray, *, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """As `permute`, each number in a permutation of its own: of range(its size), by its key.

    The bits are those of the number's own size, so a result does not depend on what it is asked
    with. Keys are uint64.
    """
    half = np.maximum(1, (_bit_length(sizes - 1) + 1) // 2).astype(np.uint64)
    result, sizes = numbers.astype(np.uint64), sizes.astype(np.uint64)
    todo = np.arange(len(numbers))
    while len(todo):
        h, key = half[todo], keys[todo] | np.uint64(1)
        mask = (np.uint64(1) << h) - np.uint64(1)
        left, right = result[todo] >> h, result[todo] & mask
        for _ in range(ROUNDS):
            key = key * MULTIPLIER
            mixed = _mix(right ^ key)
            mixed &= mask
            left ^= mixed
            left, right = right, left
        result[todo] = left << h | right
        todo = todo[result[todo] >= sizes[todo]]
    return result.astype(np.int64)


def _bit_length(x: np.ndarray) -> np.ndarray:
    return np.frexp(x.astype(np.float64))[1]  # exact: x is below 2^53


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every output bit depends on every input
    bit.
    """
    x = x ^ x >> np.uint64(30)  # a new array, which is worked on in place
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


class Shuffle(Protocol):
    """How the images of an epoch are mixed."""

    def reach(self, num_images: int) -> int:
        """How many positions ahead the images lie among those that are drawn on now."""
        ...

    def numbers(self, positions: np.ndarray, *, num_images: int, seed: int) -> np.ndarray:
        """Which of `num_images` images stands at each position of the endless stream."""
        ...


@dataclass(frozen=True, slots=True)
class FullShuffle:
    """Any image may stand anywhere in an epoch: for data that can be read anywhere at once."""

    def reach(self, num_images: int) -> int:
        """An epoch."""
        return num_images

    def numbers(self, positions: np.ndarray, *, num_images: int, seed: int) -> np.ndarray:
        """Which image stands at each position (int64, any of them) of the endless stream."""
        epochs, within = np.divmod(positions, num_images)
        numbers = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = derive_seed(seed, "order", int(epoch))
            numbers[here] = permute(within[here], size=num_images, key=key)
        return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowShuffle:
    """Images come from a few places of the set at a time: for data that is fetched in shards.

    Blocks of `block` images are shuffled; their row is turned by a random number of places, so
    that an image may come anywhere in an epoch, each place as likely as another; it is cut into
    `lanes` equal ones, of which each batch takes in turn; and in each lane every `window` images
    are shuffled. So any moment draws on lanes x window images, and none is 2 x lanes x window
    positions or more from where the blocks alone would have put it. Which images come near each
    other is not as free draws would have it: that is the price.
    """

    block: int
    lanes: int
    window: int

    def reach(self, num_images: int) -> int:
        """A window of every lane."""
        return min(num_images, self.lanes * self.window)

    def numbers(self, positions: np.ndarray, *, num_images: int, seed: int) -> np.ndarray:
        """Which image stands at each position (int64, any of them) of the endless stream."""
        epochs, within = np.divmod(positions, num_images)
        numbers = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            window_key = derive_seed(seed, "window", int(epoch))
            block_key = derive_seed(seed, "blocks", int(epoch))
            places = self._places(within[here], num_images, window_key)
            turned = (places + derive_seed(block_key, "turn", 0) % num_images) % num_images
            numbers[here] = self._in_blocks(turned, num_images, block_key)
        return numbers

    def _places(self, within: np.ndarray, num_images: int, key: int) -> np.ndarray:
        """Places in the row of shuffled blocks, of positions within an epoch."""
        offset, lane = np.divmod(within, self.lanes)
        small, larger = divmod(num_images, self.lanes)
        lane_size = small + (lane < larger)
        lane_start = lane * small + np.minimum(lane, larger)
        last = np.maximum(lane_size // self.window, 1) - 1
        window = np.minimum(offset // self.window, last)  # the last one takes what remains
        start = window * self.window
        size = np.where(window < last, self.window, lane_size - start)
        keys = _mix(np.uint64(key) + _mix((window * self.lanes + lane).astype(np.uint64)))
        return lane_start + start + permute_each(offset - start, sizes=size, keys=keys)

    def _in_blocks(self, places: np.ndarray, num_images: int, key: int) -> np.ndarray:
        """Image numbers at places of the row: whole blocks permuted, the tail set in between."""
        whole, tail = divmod(num_images, self.block)
        if whole == 0:
            return places
        tail_start = derive_seed(key, "tail", 0) % (whole + 1) * self.block
        in_tail = (places >= tail_start) & (places < tail_start + tail)
        blocks, rows = np.divmod(places - np.where(places >= tail_start, tail, 0), self.block)
        numbers = permute(np.clip(blocks, 0, whole - 1), size=whole, key=key) * self.block + rows
        return np.where(in_tail, whole * self.block + places - tail_start, numbers)


class Classes(Protocol):
    """The images of each class of a set."""

    @property
    def counts(self) -> Sequence[int]:
        """Images of each class."""
        ...

    def numbers(self, label: int, ranks: np.ndarray) -> np.ndarray:
        """Image numbers of the given images of a class, counted from 0 within it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which image stands at each position of the stream, plain or with classes in given shares.

    With `classes`, each round of sum(weights) positions has `weights[c]` images of class c, in
    shuffled order; after any number of rounds, no image of a class has come more than once more
    often than another.
    """

    num_images: int
    seed: int
    shuffle: Shuffle
    classes: Classes | None = None
    weights: tuple[int, ...] = ()

    @property
    def reach(self) -> int:
        """How many positions ahead images lie among those that are drawn on now."""
        return self.shuffle.reach(self.num_images)

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Image numbers (n,) at the given positions (n,), int64."""
        if self.classes is None:
            return self.shuffle.numbers(positions, num_images=self.num_images, seed=self.seed)
        labels, draws = self._draws(positions)
        numbers = np.empty(len(positions), np.int64)
        for label in np.unique(labels):
            here = labels == label
            ranks = self.shuffle.numbers(
                draws[here],
                num_images=self.classes.counts[label],
                seed=derive_seed(self.seed, "class", int(label)),
            )
            numbers[here] = self.classes.numbers(int(label), ranks)
        return numbers

    def _draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The class at each position, and how many of it came before."""
        weights = np.array(self.weights)
        ends = weights.cumsum()
        rounds, within = np.divmod(positions, int(ends[-1]))
        keys = _mix(np.uint64(derive_seed(self.seed, "classes", 0)) + rounds.astype(np.uint64))
        slots = permute_each(within, sizes=np.full(len(within), ends[-1]), keys=keys)
        labels = np.searchsorted(ends, slots, side="right")
        return labels, rounds * weights[labels] + slots - (ends - weights)[labels]


def flips(positions: np.ndarray, *, seed: int) -> np.ndarray:
    """Whether the image at each position is mirrored: half of them are, each by its own toss."""
    key = np.uint64(derive_seed(seed, "flip", 0))
    return (_mix(_mix(positions.astype(np.uint64)) ^ key) & np.uint64(1)).astype(bool)

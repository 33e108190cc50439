"""Shards to endless global batches, each rank its slice, from any position without reading what
came before.

The order belongs to the experiment: image number `position` of the stream is a pure function of
(seed, position). Each epoch is a pseudo-random permutation of the whole set, computed and not
stored, so the stream can be entered anywhere by any number of workers, and every image comes
exactly once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gan.game import Batch
from gan.randomness import derive_seed
from gan.world import World
from pipeline.shards import ShardReader

ROUNDS = (
    6  # of the Feistel network; 4 already give a pseudo-random permutation (Luby & Rackoff 1988)
)


def permute(numbers: np.ndarray, *, size: int, key: int) -> np.ndarray:
    """Element numbers of a pseudo-random permutation of range(size), in constant memory.

    A balanced Feistel network on the smallest even number of bits that holds `size`; results
    outside are fed back until they fall inside (cycle walking), which keeps it a bijection.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    keys = [np.uint64(derive_seed(key, "feistel", index)) for index in range(ROUNDS)]

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return left << half | right

    result = once(numbers.astype(np.uint64))
    outside = result >= size
    while outside.any():
        result[outside] = once(result[outside])
        outside = result >= size
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every output bit depends on every input
    bit.
    """
    with np.errstate(over="ignore"):
        x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return x ^ x >> np.uint64(31)


def image_numbers(positions: np.ndarray, *, num_images: int, seed: int) -> np.ndarray:
    """Which image stands at each position of the endless stream."""
    epochs, within = np.divmod(positions, num_images)
    numbers = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        key = derive_seed(seed, "order", int(epoch))
        numbers[here] = permute(within[here], size=num_images, key=key)
    return numbers


def batches(
    reader: ShardReader, *, seed: int, batch_size: int, first_batch: int, world: World
) -> Iterator[Batch]:
    """This rank's share of global batches `first_batch`, `first_batch` + 1, ... without end."""
    share = world.share(batch_size)
    index = first_batch
    while True:
        start = index * batch_size
        positions = np.arange(start + share.start, start + share.stop)
        numbers = image_numbers(positions, num_images=reader.shards.num_images, seed=seed)
        yield Batch(*reader.take(numbers))
        index += 1

"""The order of images: every image exactly once an epoch, for any world, from any point."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.world import World
from pipeline.loader import batches, image_numbers, permute
from pipeline.shards import ShardReader


@given(size=st.integers(1, 3000), key=st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_a_permutation_has_every_element_once(size, key):
    assert sorted(permute(np.arange(size), size=size, key=key)) == list(range(size))


@given(
    num_images=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    worlds=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_every_image_comes_once_an_epoch_though_the_world_changes(
    num_images, batch_size, worlds, seed
):
    def numbers(world: World, batch: int) -> np.ndarray:
        share = world.share(batch_size)
        positions = np.arange(batch * batch_size + share.start, batch * batch_size + share.stop)
        return image_numbers(positions, num_images=num_images, seed=seed)

    num_batches = -(-2 * num_images // batch_size)
    seen = np.concatenate(
        [
            numbers(World(rank, size), batch)
            for batch in range(num_batches)
            for size in [worlds[batch % len(worlds)]]
            for rank in range(size)
        ]
    )
    for epoch in range(2):
        part = seen[epoch * num_images : (epoch + 1) * num_images]
        assert sorted(part) == list(range(num_images))


def test_epochs_and_seeds_are_shuffled_apart():
    first = image_numbers(np.arange(1000), num_images=1000, seed=0)
    second = image_numbers(np.arange(1000, 2000), num_images=1000, seed=0)
    other = image_numbers(np.arange(1000), num_images=1000, seed=1)
    for a, b in ((first, second), (first, other), (first, np.arange(1000))):
        assert (a == b).sum() < 10  # 1 by chance, on average
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_a_hundred_million_images_need_no_table():
    positions = np.array([0, 10**8 - 1, 10**8, 5 * 10**8 + 3])
    numbers = image_numbers(positions, num_images=10**8, seed=0)
    assert ((numbers >= 0) & (numbers < 10**8)).all()
    assert len(set(numbers.tolist())) == 4


def test_batches_start_anywhere_and_carry_the_right_labels(stripes):
    reader = ShardReader(stripes)

    def stream(first: int, world: World):
        return batches(reader, seed=3, batch_size=12, first_batch=first, world=world)

    whole = list(islice(stream(0, World()), 20))
    resumed = list(islice(stream(7, World()), 13))
    shared = [list(islice(stream(0, World(rank, 5)), 20)) for rank in range(5)]
    for index, batch in enumerate(whole):
        parts = [shared[rank][index] for rank in range(5)]
        assert torch.equal(torch.cat([part.samples for part in parts]), batch.samples)
        labels = [part.labels for part in parts if part.labels is not None]
        assert batch.labels is not None
        assert torch.equal(torch.cat(labels), batch.labels)
        if index >= 7:
            assert torch.equal(resumed[index - 7].samples, batch.samples)
        for image, label in zip(batch.samples, batch.labels, strict=True):
            number = int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])
            assert number % 2 == label

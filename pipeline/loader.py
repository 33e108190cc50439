"""Shards to endless global batches, each rank its slice, from any position without reading what
came before; one thread reads ahead.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import torch

from gan.game import Batch
from gan.transfer import sent
from gan.world import World
from pipeline.class_index import ClassIndex
from pipeline.data_checks import block_of, check_data, shares_of
from pipeline.data_config import DataConfig
from pipeline.dataset import ShardSet
from pipeline.order import FullShuffle, Order, Shuffle, WindowShuffle, flips
from pipeline.shards import ShardReader

PLANNED = 8192  # images whose order is computed at once: a batch at a time it would cost more
BATCHES_AHEAD = 2
GOODBYE_SEC = 5.0  # for the batch that is being read when nobody wants any more
FORESEEN = 2**22  # images, at most, whose shards are asked for ahead of time
EVERY = 8  # of the images ahead, one in so many is looked at: a shard has thousands


def shuffle_of(config: DataConfig, shards: ShardSet) -> Shuffle:
    """How the images are mixed: by the settings and the size of an image, never by the cluster."""
    if config.shuffle == "full":
        return FullShuffle()
    block = block_of(shards)
    return WindowShuffle(block=block, lanes=config.lanes, window=config.window or block)


def order_of(config: DataConfig, reader: ShardReader, *, seed: int) -> Order:
    """The order of the images of a set. Raises ConfigError where they do not fit together."""
    shards = reader.shards
    check_data(config, shards)
    balanced = config.balance == "classes"
    return Order(
        num_images=shards.num_images,
        seed=seed,
        shuffle=shuffle_of(config, shards),
        classes=ClassIndex(reader) if balanced else None,
        weights=shares_of(config, shards) if balanced else (),
    )


def batches(
    reader: ShardReader,
    *,
    seed: int,
    batch_size: int,
    first_batch: int,
    world: World,
    data: DataConfig | None = None,
    device: torch.device | str = "cpu",
) -> Generator[Batch]:
    """This rank's share of global batches `first_batch`, `first_batch` + 1, ... without end, on
    `device`.

    `data` says in what order images come and whether they are mirrored. Raises ConfigError where
    it does not fit the set, and whatever reading a shard raises.
    """
    config = data or DataConfig()
    stream = _Stream(
        reader,
        order_of(config, reader, seed=seed),
        batch_size=batch_size,
        world=world,
        pinned=torch.device(device).type == "cuda",
    )
    return _on_device(_ahead(stream.batches(first_batch)), seed if config.flip else None, device)


class _Stream:
    """One rank's batches as they come from the reader, each with its positions."""

    def __init__(
        self, reader: ShardReader, order: Order, *, batch_size: int, world: World, pinned: bool
    ):
        self._reader, self._order, self._pinned = reader, order, pinned
        self._batch_size, self._share = batch_size, world.share(batch_size)
        # Not many epochs at once either: each has an order of its own to be worked out.
        planned = min(PLANNED, 4 * order.num_images)
        self._per_plan = max(1, planned // max(1, len(range(batch_size)[self._share])))
        self._foreseen = 0  # batches whose shards have been asked for

    def batches(self, first: int) -> Iterator[tuple[Batch, np.ndarray]]:
        """Batch `first` and those that follow it, without end."""
        self._foreseen = first
        ahead = min(FORESEEN, self._order.reach) // self._batch_size + 1
        for start in range(first, 2**62, self._per_plan):
            stop = start + self._per_plan
            self._foresee(stop + ahead)
            positions = self._positions(start, stop)
            numbers = self._order.numbers(positions.reshape(-1)).reshape(positions.shape)
            for row, at in zip(numbers, positions, strict=True):
                images, labels = self._reader.take(row)
                if self._pinned:
                    images = images.permute(0, 2, 3, 1).pin_memory().permute(0, 3, 1, 2)
                    labels = None if labels is None else labels.pin_memory()
                yield Batch(images, labels), at

    def _positions(self, start: int, stop: int) -> np.ndarray:
        """Positions (batches, images) of this rank in batches `start` to `stop`."""
        batch = np.arange(start, stop, dtype=np.int64)[:, None] * self._batch_size
        return batch + np.arange(self._share.start, self._share.stop)

    def _foresee(self, until: int) -> None:
        """Asks for the shards of the batches before `until`; only a remote set has any use of it.

        A shard that is missed here is fetched when it is read.
        """
        while self._reader.reads_ahead and self._foreseen < until:
            stop = min(until, self._foreseen + EVERY * self._per_plan)
            some = self._positions(self._foreseen, stop).reshape(-1)[::EVERY]
            self._reader.expect(self._order.numbers(some))
            self._foreseen = stop


def _ahead(items: Iterator[tuple[Batch, np.ndarray]]) -> Generator[tuple[Batch, np.ndarray]]:
    """The same items, made by a thread while the ones before are used."""
    # In C, unlike queue.Queue: batches of small images change hands thousands of times a second.
    ready = queue.SimpleQueue[tuple[Batch, np.ndarray] | BaseException]()
    room = queue.SimpleQueue[bool]()
    over = threading.Event()

    def work() -> None:
        try:
            while room.get() and not over.is_set():
                ready.put(next(items))
        except BaseException as error:  # raised where the batch is asked for
            ready.put(error)

    for _ in range(BATCHES_AHEAD + 1):
        room.put(True)
    thread = threading.Thread(target=work, name="batches", daemon=True)

    def end() -> None:
        over.set()
        room.put(False)
        thread.join(GOODBYE_SEC)

    # A thread that is inside torch when the interpreter ends would abort the process.
    atexit.register(end)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            room.put(True)
    finally:
        atexit.unregister(end)
        end()


def _on_device(
    stream: Generator[tuple[Batch, np.ndarray]], flip_seed: int | None, device: torch.device | str
) -> Generator[Batch]:
    """The batches on `device`, mirrored there where they are to be."""
    with closing(stream):
        for batch, positions in stream:
            images = batch.samples.to(device, non_blocking=True)
            labels = batch.labels
            if labels is not None:
                labels = labels.to(device, non_blocking=True)
            if flip_seed is not None:
                tossed = sent(torch.from_numpy(flips(positions, seed=flip_seed)), images.device)
                images = torch.where(tossed[:, None, None, None], images.flip(3), images)
            yield Batch(images, labels)

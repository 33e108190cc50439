"""Writes and reads data sets: checksummed Arrow shards of uint8 images, and an index naming them.

A shard is an Arrow IPC file of one record batch with the columns `image` (raw pixels as fixed-size
binary, height x width x channels bytes; or PNG, WebP or JPEG bytes as binary) and `label` (int64,
-1 where there is none). The index is published last, so a half-written set has none. Any Arrow
reader opens the shards without Forger.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gan.config import ConfigError
from pipeline.arrow_files import open_raw
from pipeline.data_config import CACHE_GB
from pipeline.dataset import Encoding, ShardSet
from pipeline.folder import Folder
from pipeline.parts import (
    Part,
    finished_parts,
    forget_parts,
    publish_parts,
    write_part,
)
from pipeline.shard_cache import Fetchers, ShardCache, raw_bytes
from pipeline.storage import Storage, open_storage
from pipeline.verified import read_against_checksums

SHARD_BYTES = 64 * 2**20  # of pixels, before they are encoded
MAX_MAPS = 4096  # shards mapped at a time; the kernel allows a process 65,530
USED_SEC = 60.0  # how often a mapped shard of the cache is said to be in use


class ShardWriter:
    """Writes a set in one stream, a shard at a time; what was finished before a kill is kept.

    A writer of the same `plan` goes on after the shards that are there: `num_images` of them, and
    `notes` say where its caller stood. Memory holds one shard.
    """

    def __init__(
        self,
        uri: str,
        *,
        encoding: Encoding = "raw",
        plan: Any = None,
        shard_bytes: int | None = None,
    ):
        self.encoding: Encoding = encoding
        self.plan = plan
        self._storage = open_storage(uri)
        self._shard_bytes = shard_bytes or SHARD_BYTES
        self._images: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._held = 0
        found = finished_parts(self._storage, plan=plan)
        self._parts: list[Part] = []
        while len(self._parts) in found:
            self._parts.append(found[len(self._parts)])

    @property
    def num_images(self) -> int:
        """Images in finished shards."""
        return sum(part.shard.num_images for part in self._parts)

    @property
    def notes(self) -> list[Any]:
        """The notes of the finished shards, in order."""
        return [part.note for part in self._parts]

    def add(
        self, images: np.ndarray, labels: Sequence[int] | np.ndarray, *, note: Any = None
    ) -> bool:
        """Adds uint8 images (n, h, w, c) and their labels (n,), -1 where there is none.

        True where this finished a shard: it ends with the last of these images, and `note` (plain
        JSON) is kept with it.
        """
        self._images.append(images)
        self._labels.append(np.asarray(labels, np.int64))
        self._held += len(images)
        if self._held and self._held >= max(1, self._shard_bytes // images[0].nbytes):
            self._cut(note)
            return True
        return False

    def _cut(self, note: Any) -> None:
        part = write_part(
            self._storage,
            len(self._parts),
            np.concatenate(self._images),
            np.concatenate(self._labels),
            encoding=self.encoding,
            plan=self.plan,
            note=note,
        )
        self._parts.append(part)
        self._images, self._labels, self._held = [], [], 0

    def finish(self, *, classes: tuple[str, ...], origin: Mapping[str, Any]) -> ShardSet:
        """Writes what is left, publishes the index and returns the set.

        Raises ConfigError where there are no images, or another set is already there.
        """
        if self._held:
            self._cut(None)
        return publish_parts(
            self._storage, self._parts, classes=classes, encoding=self.encoding, origin=origin
        )


def write_shards(
    uri: str,
    images: Iterable[tuple[np.ndarray, int]],
    *,
    classes: tuple[str, ...],
    origin: Mapping[str, Any],
    encoding: Encoding = "raw",
) -> ShardSet:
    """Writes (uint8 image (h, w, c), label or -1) pairs as shards, index last, and returns the
    set; anew, whatever an interrupted writer left.

    `origin` is stored as it stands once the images are through. Raises ConfigError where there are
    none.
    """
    storage = open_storage(uri)
    forget_parts(storage)
    writer = ShardWriter(uri, encoding=encoding)
    for image, label in images:
        writer.add(image[None], [label])
    return writer.finish(classes=classes, origin=origin)


def verify_shards(shards: ShardSet) -> None:
    """Looks at every shard. Raises ConfigError naming each missing or damaged one.

    Files of a folder are read against their checksums, but for those that this user has read
    before and that nobody has touched since, by the file system's word. Remote shards must be
    there; they are verified when they are fetched.
    """
    storage = open_storage(shards.uri)
    if isinstance(storage, Folder):
        mistakes = read_against_checksums(storage, shards)
    else:
        there = set(storage.names())
        mistakes = [
            f"{shards.uri}/{shard.file} is missing"
            for shard in shards.shards
            if shard.file not in there
        ]
    if mistakes:
        raise ConfigError([f"{mistake}; prepare the data again" for mistake in mistakes])


class ShardReader:
    """Images of a set by number: from the memory-mapped files of a folder, or through the cache of
    this machine where shards are remote or encoded. Threads may share one.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        cache_gb: float = CACHE_GB,
        storage: Storage | None = None,
        cache: ShardCache | None = None,
    ):
        self.shards = shards
        self._storage = storage or open_storage(shards.uri)
        self._cache: ShardCache | None = None
        if shards.encoding != "raw" or not isinstance(self._storage, Folder):
            self._cache = cache or ShardCache(limit_bytes=int(cache_gb * 1e9))
            self._fetchers = Fetchers(self._cache, self._storage, shards)
        self._starts = np.cumsum([0] + [shard.num_images for shard in shards.shards])
        self._maps: OrderedDict[int, _Map] = OrderedDict()  # those used last, at the end
        self._max_maps = self._affordable_maps()
        self._lock = threading.Lock()

    def _affordable_maps(self) -> int:
        """What stays mapped stays on the disk, though the cache may have removed its name."""
        if self._cache is None:
            return MAX_MAPS
        largest = max(shard.num_images for shard in self.shards.shards)
        needed = raw_bytes(self.shards, largest)
        fits = self._cache.limit_bytes // needed
        if fits < 1:
            raise ConfigError(
                [
                    f"data.cache_gb must hold a shard, {needed / 1e9:.3g} GB, "
                    f"got {self._cache.limit_bytes / 1e9:g}"
                ]
            )
        return min(MAX_MAPS, fits)

    def take(self, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images (n, c, h, w) uint8 and labels (n,) int64, or None, of the given image numbers, in
        order.
        """
        images = self._gather(*self.places(numbers)).permute(0, 3, 1, 2)  # channels last in memory
        return images, self.labels(numbers) if self.shards.num_classes else None

    def _gather(self, which: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """Images (n, h, w, c) of the given shards and rows."""
        shape, size = (len(rows), *self.shards.shape), self.shards.image_bytes
        maps = {number: self._map(number) for number in set(which.tolist())}
        if not maps:
            return torch.empty(shape, dtype=torch.uint8)
        addresses = np.empty(len(self.shards.shards), np.int64)
        for number, opened in maps.items():
            addresses[number] = opened.address
        first = min(opened.address for opened in maps.values())
        end = max(opened.address + opened.pixels.nbytes for opened in maps.values())
        taken = _anywhere(first, end, size)[addresses[which] - first + rows * size]
        return torch.from_numpy(taken.view(np.uint8).reshape(shape))

    def labels(self, numbers: np.ndarray) -> torch.Tensor:
        """Labels (n,) int64 of the given image numbers, in order."""
        which, rows = self.places(numbers)
        labels = np.empty(len(numbers), np.int64)
        for shard in set(which.tolist()):
            here = which == shard
            labels[here] = self._map(shard).labels[rows[here]]
        return torch.from_numpy(labels)

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In which shard, and at which row of it, each of the images is."""
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        return which, numbers - self._starts[which]

    def labels_of_shard(self, shard: int) -> np.ndarray:
        """Labels (n,) int64 of one shard's images, in order."""
        return self._map(shard).labels

    @property
    def reads_ahead(self) -> bool:
        """Whether `expect` is of use."""
        return self._cache is not None

    def expect(self, numbers: np.ndarray) -> None:
        """Says that these images will be taken soon: their shards are fetched meanwhile."""
        self.expect_shards(self.places(numbers)[0])

    def expect_shards(self, numbers: np.ndarray) -> None:
        """As `expect`, by the numbers of the shards."""
        if self._cache is not None:
            self._fetchers.expect(np.unique(numbers))

    def _map(self, number: int) -> _Map:
        if not 0 <= number < len(self.shards.shards):
            raise IndexError(f"a set of {self.shards.num_images} images has no such image")
        with self._lock:
            found = self._maps.get(number)
            if found is not None:
                self._maps.move_to_end(number)
        if found is None:
            found = self._opened(number)
            with self._lock:
                self._maps[number] = found
                while len(self._maps) > self._max_maps:
                    self._maps.popitem(last=False)
        if self._cache is not None and time.monotonic() > found.seen + USED_SEC:
            found.seen = time.monotonic()
            self._cache.touch(self.shards.shards[number])
        return found

    def _opened(self, number: int) -> _Map:
        shard = self.shards.shards[number]
        while True:
            if self._cache is not None:
                path = self._cache.path(self._storage, self.shards, shard)
            else:
                assert isinstance(self._storage, Folder)
                path = self._storage.path(shard.file)
            try:
                raw = open_raw(path, self.shards.shape)
            except FileNotFoundError:  # another job needed the room at this very moment
                if self._cache is None:
                    raise
                continue
            if len(raw.images) != shard.num_images:
                said = f"{len(raw.images)} images, and its index says {shard.num_images}"
                raise ConfigError([f"{path} holds {said}; prepare the data again"])
            return _Map(raw.images.reshape(-1), raw.labels, time.monotonic())


class _Map:
    """One shard in memory: the bytes of its pixels and where they begin, its labels (n,)."""

    __slots__ = ("address", "labels", "pixels", "seen")

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, seen: float):
        self.pixels, self.labels, self.seen = pixels, labels, seen
        self.address = int(pixels.__array_interface__["data"][0])


class _Memory:
    """What NumPy takes for an array, by address."""

    __slots__ = ("__array_interface__",)

    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = interface


def _anywhere(first: int, end: int, size: int) -> np.ndarray:
    """This process's memory from address `first` to `end`, which hold all mapped shards that are
    read: element n is the `size` bytes that begin n bytes after `first`.

    One indexing copies images from any number of shards once; by shard they would have to be put
    in order by a second copy. There is no bound but the caller's: every index is of a row of a map
    that the caller holds.
    """
    interface = {
        "version": 3,
        "data": (first, True),
        "shape": (end - first - size + 1,),
        "strides": (1,),
        "typestr": f"|V{size}",
    }
    return np.asarray(_Memory(interface))

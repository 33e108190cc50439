"""Writes and reads data sets: checksummed Arrow shards of uint8 images, and an index naming them.

A shard is an Arrow IPC file of one record batch with the columns `image` (raw pixels as fixed-size
binary, height x width x channels bytes; or PNG, WebP or JPEG bytes as binary) and `label` (int64,
-1 where there is none). The index is published last, so a half-written set has none. Any Arrow
reader opens the shards without Forger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gan.config import ConfigError
from pipeline.arrow_files import open_raw
from pipeline.dataset import Encoding, ShardSet
from pipeline.parts import (
    Part,
    file_sha256,
    finished_parts,
    forget_parts,
    publish_parts,
    write_part,
)
from pipeline.storage import open_storage

SHARD_BYTES = 64 * 2**20  # of pixels, before they are encoded


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
    """Reads every shard against its checksum. Raises ConfigError naming each missing or damaged
    one.
    """
    storage = open_storage(shards.uri)
    mistakes = []
    for shard in shards.shards:
        if not storage.exists(shard.file):
            mistakes.append(f"{storage.path(shard.file)} is missing")
        elif file_sha256(storage.path(shard.file)) != shard.sha256:
            mistakes.append(
                f"{storage.path(shard.file)} is damaged (its sha256 differs from the index)"
            )
    if mistakes:
        raise ConfigError([f"{mistake}; prepare the data again" for mistake in mistakes])


class ShardReader:
    """Images of a set by number, straight from the memory-mapped files."""

    def __init__(self, shards: ShardSet):
        self.shards = shards
        storage = open_storage(shards.uri)
        self._starts = np.cumsum([0] + [shard.num_images for shard in shards.shards])
        self._images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for shard in shards.shards:
            raw = open_raw(storage.path(shard.file), shards.shape)
            self._images.append(raw.images)
            labels.append(raw.labels)
        self._labels = np.concatenate(labels)

    def take(self, numbers: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images (n, c, h, w) uint8 and labels (n,) int64, or None, of the given image numbers, in
        order.
        """
        size, channels = self.shards.image_size_px, self.shards.channels
        images = np.empty((len(numbers), size, size, channels), np.uint8)
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        for shard in np.unique(which):
            here = which == shard
            images[here] = self._images[shard].take(numbers[here] - self._starts[shard], axis=0)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # stays channels-last in memory
        return pixels, self.labels(numbers) if self.shards.num_classes else None

    def labels(self, numbers: np.ndarray) -> torch.Tensor:
        """Labels (n,) int64 of the given image numbers, in order."""
        return torch.from_numpy(self._labels[numbers])

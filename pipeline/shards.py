"""A data set on disk: checksummed Arrow shards of raw uint8 images, and an index that names them.

A shard is an Arrow IPC file of one record batch with the columns `image` (fixed-size binary:
height x width x channels bytes) and `label` (int64, -1 where there is none). The index is
published last, so a half-written set has none. Any Arrow reader opens the shards without Forger.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gan.config import ConfigError
from pipeline.dataset import INDEX, SCHEMA, Shard, ShardSet, open_shards
from pipeline.storage import Folder, open_storage

SHARD_BYTES = 64 * 2**20


def write_shards(
    uri: str,
    images: Iterable[tuple[np.ndarray, int]],
    *,
    classes: tuple[str, ...],
    origin: dict[str, Any],
) -> ShardSet:
    """Writes (uint8 image (h, w, c), label or -1) pairs as shards, index last, and returns the
    set.

    `origin` is stored as it stands once the images are through. Raises ConfigError where there are
    none.
    """
    storage = open_storage(uri)
    stream = iter(images)
    try:
        first = next(stream)
    except StopIteration:
        raise ConfigError(["none of the images could be used, see the log"]) from None
    size, _, channels = first[0].shape
    digest = hashlib.sha256(f"{size} {channels} {len(classes)}".encode())
    per_shard = max(1, SHARD_BYTES // first[0].nbytes)
    shards: list[Shard] = []
    rows = [first, *islice(stream, per_shard - 1)]
    while rows:
        for image, label in rows:
            digest.update(
                hashlib.sha256(image.tobytes() + label.to_bytes(8, "big", signed=True)).digest()
            )
        shards.append(_write_shard(storage, len(shards), rows))
        rows = list(islice(stream, per_shard))
    result = ShardSet(
        uri=storage.uri,
        num_images=sum(shard.num_images for shard in shards),
        image_size_px=size,
        channels=channels,
        classes=classes,
        digest=digest.hexdigest(),
        shards=tuple(shards),
        origin=origin,
    )
    _publish(storage, result)
    return result


def _publish(storage: Folder, result: ShardSet) -> None:
    """Puts the index in place, unless another set is already there."""
    if storage.exists(INDEX):
        old = open_shards(storage.uri)
        if old.digest != result.digest:
            for file in {s.file for s in result.shards} - {s.file for s in old.shards}:
                storage.delete(file)
            raise ConfigError(
                [
                    f"{storage.uri} already holds another data set ({old.num_images} images, "
                    f"digest {old.digest[:12]}); choose another folder or delete that one"
                ]
            )
    index = {"schema": SCHEMA, **asdict(result)}
    del index["uri"]
    storage.write(INDEX, json.dumps(index, indent=1).encode())


def _write_shard(storage: Folder, number: int, rows: list[tuple[np.ndarray, int]]) -> Shard:
    pixels = b"".join(image.tobytes() for image, _ in rows)
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows[0][0].nbytes), len(rows), [None, pa.py_buffer(pixels)]
    )
    labels = pa.array([label for _, label in rows], pa.int64())
    batch = pa.record_batch({"image": column, "label": labels})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    sha256 = hashlib.sha256(data).hexdigest()
    # Named after its content, so that preparing again never writes over a shard in use.
    name = f"shard-{number:05d}-{sha256[:12]}.arrow"
    if not (storage.exists(name) and _sha256(storage.path(name)) == sha256):
        storage.write(name, data.to_pybytes())
    return Shard(name, len(rows), sha256)


def read_table(path: Any) -> dict[str, Any]:
    """The columns of a Parquet file: fixed-size binary as uint8 (n, bytes), others as Python
    lists.
    """
    table = pq.read_table(path)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        values = table.column(name).to_pylist()
        is_bytes = pa.types.is_fixed_size_binary(table.schema.field(name).type)
        columns[name] = (
            np.array([np.frombuffer(v, np.uint8) for v in values]) if is_bytes else values
        )
    return columns


def _sha256(path: Any) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_shards(shards: ShardSet) -> None:
    """Reads every shard against its checksum. Raises ConfigError naming each missing or damaged
    one.
    """
    storage = open_storage(shards.uri)
    mistakes = []
    for shard in shards.shards:
        if not storage.exists(shard.file):
            mistakes.append(f"{storage.path(shard.file)} is missing")
        elif _sha256(storage.path(shard.file)) != shard.sha256:
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
        size, channels = shards.image_size_px, shards.channels
        for shard in shards.shards:
            with pa.memory_map(str(storage.path(shard.file))) as source:
                batch = pa.ipc.open_file(source).get_batch(0)
            pixels = np.frombuffer(batch.column("image").buffers()[1], np.uint8)
            self._images.append(pixels.reshape(shard.num_images, size, size, channels))
            labels.append(batch.column("label").to_numpy())
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

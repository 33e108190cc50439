"""The parts of a data set that is being written: finished shards, which a kill leaves as they are,
and the index that makes one set of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gan.config import ConfigError
from pipeline.arrow_files import encoded_shard, raw_shard
from pipeline.codecs import LOSSLESS, decode_all, encode
from pipeline.dataset import (
    INDEX,
    Encoding,
    Shard,
    ShardSet,
    index_of,
    open_shards,
    shard_of,
)
from pipeline.storage import Storage

UNFINISHED = "unfinished"  # records of the finished shards of a set that is being written


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A finished shard of a set that is being written, and what its writer noted with it."""

    number: int
    shard: Shard
    shape: tuple[int, int, int]  # height, width, channels
    note: Any  # the writer's own, plain JSON
    digests: bytes  # sha256 of each image's pixels and label, one after the other


def write_part(
    storage: Storage,
    number: int,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    encoding: Encoding = "raw",
    encoded: Sequence[bytes] | None = None,
    plan: Any = None,
    note: Any = None,
) -> Part:
    """Writes shard `number` of a set, and a record by which `finished_parts` knows it.

    Any process may write any shard. `images` are uint8 (n, h, w, c), `labels` (n,) with -1 where
    there is none; `encoded` are the images' bytes where they are encoded already. `plan` is plain
    JSON and names what makes the set: parts of another plan do not belong to it.
    """
    if encoding == "raw":
        data, pixels_sha256 = raw_shard(images, labels), None
    else:
        encoded = encoded or [encode(image, encoding) for image in images]
        shape = images.shape[1:]
        if encoding not in LOSSLESS:
            images = decode_all(list(encoded), shape=shape)  # what a reader will see
        data = encoded_shard(encoded, labels, shape=shape, encoding=encoding)
        pixels_sha256 = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
    sha256 = hashlib.sha256(data).hexdigest()
    shard = Shard(
        # Named after its content, so that preparing again never writes over a shard in use.
        file=f"shard-{number:05d}-{sha256[:12]}.arrow",
        num_images=len(images),
        sha256=sha256,
        num_bytes=len(data),
        pixels_sha256=pixels_sha256,
        class_counts=tuple(np.bincount(labels[labels >= 0]).tolist()),
    )
    height, width, channels = images.shape[1:]
    part = Part(
        number=number,
        shard=shard,
        shape=(height, width, channels),
        note=note,
        digests=b"".join(map(_digest, images, labels.tolist())),
    )
    if not _stands(storage, shard):  # files that may be in use are left alone
        storage.write(shard.file, data)
    said = {"plan": plan, "shape": part.shape, "note": note, "shard": asdict(shard)}
    storage.write(_record(number), json.dumps(said).encode() + b"\n" + part.digests)
    return part


def _digest(image: np.ndarray, label: int) -> bytes:
    return hashlib.sha256(image.tobytes() + label.to_bytes(8, "big", signed=True)).digest()


def _record(number: int) -> str:
    return f"{UNFINISHED}/{number:06d}"


def finished_parts(storage: Storage, *, plan: Any = None) -> dict[int, Part]:
    """The parts of `plan` that were finished before their writer ended, by number."""
    parts = {}
    for name in storage.names(UNFINISHED):
        head, _, digests = storage.read(name).partition(b"\n")
        said = json.loads(head)
        shard = shard_of(said["shard"])
        if said["plan"] == json.loads(json.dumps(plan)) and storage.exists(shard.file):
            number = int(name.rpartition("/")[2])
            parts[number] = Part(
                number=number,
                shard=shard,
                shape=tuple(said["shape"]),
                note=said["note"],
                digests=digests,
            )
    return parts


def sweep_parts(storage: Storage) -> None:
    """Removes what killed writers of shards, and of their records, left in the middle of a write.
    Only for who alone prepares here; in other folders, other sets may be in the making.
    """
    for place in (storage, storage.below(UNFINISHED)):
        place.sweep(deep=False)


def publish_parts(
    storage: Storage,
    parts: Sequence[Part],
    *,
    classes: tuple[str, ...],
    encoding: Encoding = "raw",
    origin: Mapping[str, Any],
) -> ShardSet:
    """Makes one set of parts, in this order: puts the index in place and drops the records.

    Raises ConfigError where there are no images, or another set is already there.
    """
    parts = [part for part in parts if part.shard.num_images]
    if not parts:
        raise ConfigError(["none of the images could be used, see the log"])
    (size, _, channels), *others = {part.shape for part in parts}
    assert not others, "images of one set are of one shape"
    digest = hashlib.sha256(f"{size} {channels} {len(classes)}".encode())
    for part in parts:
        digest.update(part.digests)
    result = ShardSet(
        uri=storage.uri,
        num_images=sum(part.shard.num_images for part in parts),
        image_size_px=size,
        channels=channels,
        classes=classes,
        digest=digest.hexdigest(),
        shards=tuple(_with_classes(part.shard, len(classes)) for part in parts),
        encoding=encoding,
        origin=dict(origin),
    )
    _publish(storage, result)
    forget_parts(storage)
    return result


def forget_parts(storage: Storage) -> None:
    """Drops the records of finished parts; shards that no index names stay as they are."""
    for name in storage.names(UNFINISHED):
        storage.delete(name)


def _with_classes(shard: Shard, num_classes: int) -> Shard:
    """The shard with a count for each class of the set."""
    counts = shard.class_counts or ()
    assert len(counts) <= num_classes, "labels are numbers of the set's classes"
    spread = counts + (0,) * (num_classes - len(counts))
    return replace(shard, class_counts=spread or None)


def _publish(storage: Storage, result: ShardSet) -> None:
    """Puts the index in place, unless another set is already there."""
    index = index_of(result)
    if storage.create(INDEX, index):
        return
    old = open_shards(storage.uri)
    if old.digest == result.digest:
        storage.write(INDEX, index)  # the same images, by other shards or from elsewhere
        return
    for file in {s.file for s in result.shards} - {s.file for s in old.shards}:
        storage.delete(file)
    forget_parts(storage)
    raise ConfigError(
        [
            f"{storage.uri} already holds another data set ({old.num_images} images, "
            f"digest {old.digest[:12]}); choose another place or delete that one"
        ]
    )


def _stands(storage: Storage, shard: Shard) -> bool:
    if not storage.exists(shard.file):
        return False
    with storage.local(shard.file) as path:
        return file_sha256(path) == shard.sha256


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

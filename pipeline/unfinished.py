"""What a destination of prepared data holds before the work: earlier runs' shards, or another set;
and who works there now.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gan.config import ConfigError
from pipeline.dataset import INDEX, ShardSet, open_shards
from pipeline.folder import LOCK, Folder
from pipeline.parts import Part, file_sha256, finished_parts, forget_parts
from pipeline.sources.source import Scratch
from pipeline.storage import Storage

log = logging.getLogger(__name__)

WORKSHOP = "preparing"  # of what is unpacked, and of the lock


@contextmanager
def workshop(storage: Storage) -> Iterator[Scratch]:
    """Where things are unpacked, held by one process at a time; nothing of it stays."""
    made = isinstance(storage, Folder) and not storage.root.exists()
    shop = storage.below(WORKSHOP)
    try:
        with shop.locked(f"another process is preparing data into {storage.uri}"):
            if isinstance(storage, Folder):
                try:
                    yield Scratch(storage.root / WORKSHOP / "unpacked")
                finally:
                    shop.delete(LOCK)
            else:
                with tempfile.TemporaryDirectory(prefix="forger-prepare-") as folder:
                    yield Scratch(Path(folder) / "unpacked")
    finally:
        if isinstance(storage, Folder):
            for folder in (storage.root / WORKSHOP, *([storage.root] if made else [])):
                try:
                    folder.rmdir()
                except OSError:  # it holds something
                    break


def already(storage: Storage, plan: str) -> ShardSet | None:
    """The set that is at the destination, where it was made by this very plan.

    Raises ConfigError where it is another one: sooner than after the work.
    """
    if not storage.exists(INDEX):
        return None
    old = open_shards(storage.uri)
    if old.origin.get("plan") == plan:
        forget_parts(storage)
        forget_shards(storage)
        return old
    raise ConfigError(
        [
            f"{storage.uri} already holds another data set ({old.num_images} images, digest "
            f"{old.digest[:12]}), of other images or settings; choose another place or delete it"
        ]
    )


def finished(storage: Storage, plan: str) -> dict[int, Part]:
    """Parts of this plan whose shards are whole; records of other plans, and their shards, go."""
    found = finished_parts(storage, plan=plan)
    whole = {}
    for number, part in found.items():
        with storage.local(part.shard.file) as path:
            if file_sha256(path) == part.shard.sha256:
                whole[number] = part
            else:
                log.warning("%s is damaged and is made again", part.shard.file)
    if not found:
        forget_shards(storage)
        forget_parts(storage)
    return whole


def forget_shards(storage: Storage) -> None:
    """Deletes shards that no index names: an abandoned run's."""
    kept = set()
    if storage.exists(INDEX):
        kept = {shard.file for shard in open_shards(storage.uri).shards}
    for name in storage.names():
        if re.fullmatch(r"shard-\d{5,}-[0-9a-f]{12}\.arrow", name) and name not in kept:
            storage.delete(name)

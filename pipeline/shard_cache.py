"""Shards that are remote or encoded, as raw pixels on this machine's disk: fetched once, verified
once, shared by all processes here.

~/.cache/forger/shards/<sha256 of the published shard>.arrow    mapped by readers as it is

A file is complete or not there. Nothing needs cleaning after a kill: locks are the kernel's, and
what was half fetched is written over or evicted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gan.config import ConfigError
from pipeline.arrow_files import raw_shard, read_encoded
from pipeline.codecs import decode_all
from pipeline.dataset import Shard, ShardSet
from pipeline.folder import full_disk
from pipeline.storage import Storage, StorageError

log = logging.getLogger(__name__)

OVERHEAD_BYTES = 4096  # of an Arrow file beside its columns, at most
LABEL_BYTES = 8
FETCHERS = 4  # shards read ahead at a time
IDLE_SEC = 5.0  # after which a fetcher goes home
PART = ".part"


def cache_folder(name: str) -> Path:
    """Where this user's files of one kind are kept: in $XDG_CACHE_HOME, or in ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "forger" / name


def raw_bytes(shards: ShardSet, num_images: int) -> int:
    """Bytes of a file of so many images as raw pixels, at most."""
    return num_images * (shards.image_bytes + LABEL_BYTES) + OVERHEAD_BYTES


class ShardCache:
    """Files of raw shards, the ones used longest ago removed where they exceed `limit_bytes`."""

    def __init__(self, root: Path | None = None, *, limit_bytes: int):
        self.root = root or cache_folder("shards")
        self.limit_bytes = limit_bytes

    def path(self, storage: Storage, shards: ShardSet, shard: Shard) -> Path:
        """The file of a shard's raw pixels, fetched and verified where it is not there yet.

        It may be removed at any time; who has it mapped keeps it. Raises ConfigError naming a
        shard that is missing or damaged, and StorageError where it cannot be had or kept.
        """
        path = self.root / f"{shard.sha256}.arrow"
        if self._used(path):
            return path
        try:
            self.root.joinpath("locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._readable(error, 0) from None
        with self._locked(shard.sha256[:2]):  # another process may be fetching it
            if not self._used(path):
                try:
                    self._fetch(storage, shards, shard, path)
                except OSError as error:  # of this disk: a storage raises StorageError
                    raise self._readable(error, raw_bytes(shards, shard.num_images)) from None
        return path

    def touch(self, shard: Shard) -> None:
        """Says that a shard is in use, so that others are removed before it."""
        self._used(self.root / f"{shard.sha256}.arrow")

    def holds(self, shard: Shard) -> bool:
        """Whether a shard's file is there."""
        return (self.root / f"{shard.sha256}.arrow").exists()

    def _fetch(self, storage: Storage, shards: ShardSet, shard: Shard, path: Path) -> None:
        data = _verified(storage, shard)
        if shards.encoding != "raw":
            data = _decoded(data, storage, shards, shard)
        part = path.with_suffix(PART)
        with open(part, "wb") as file:
            self._make_room(len(data), part)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave a whole file of nothing
        os.replace(part, path)

    def _make_room(self, num_bytes: int, part: Path) -> None:
        """Removes what was used longest ago, and claims the room for `part`."""
        with self._locked("room"):
            files = []
            for found in self.root.iterdir():
                if found.suffix in (".arrow", PART) and found != part:
                    with contextlib.suppress(FileNotFoundError):
                        stat = found.stat()
                        files.append((stat.st_mtime_ns, stat.st_size, found))
            over = sum(size for _, size, _ in files) + num_bytes - self.limit_bytes
            for _, size, oldest in sorted(files):
                if over <= 0:
                    break
                if oldest.suffix == PART and self._is_being_written(oldest):
                    continue
                oldest.unlink(missing_ok=True)
                over -= size
            os.truncate(part, num_bytes)  # counts from now on, before its bytes are there

    def _is_being_written(self, part: Path) -> bool:
        with open(self._lock_file(part.name[:2]), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    def _used(self, path: Path) -> bool:
        """Whether the file is there; if so, it has been used just now."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self._lock_file(name), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> Path:
        """One of 257, kept for good: removing a lock while others wait for it would break it."""
        return self.root / "locks" / name

    def _readable(self, error: OSError, needed: int) -> StorageError:
        said = full_disk(error, self.root, needed) or str(error)
        return StorageError(
            f"shards cannot be kept in {self.root}: {said}; make room, lower data.cache_gb, or "
            f"set XDG_CACHE_HOME to a folder of a larger disk"
        )


def _verified(storage: Storage, shard: Shard) -> bytes:
    """The bytes of a published shard. Raises ConfigError where they are not what was published."""
    for _ in range(2):  # once more: it may have been damaged on its way only
        try:
            data = storage.read(shard.file)
        except FileNotFoundError:
            raise ConfigError(
                [f"{storage.uri}/{shard.file} is missing; prepare the data again"]
            ) from None
        if hashlib.sha256(data).hexdigest() == shard.sha256:
            return data
        log.warning("%s/%s came with another sha256 than the index has", storage.uri, shard.file)
    raise ConfigError(
        [
            f"{storage.uri}/{shard.file} is damaged (its sha256 differs from the index); "
            f"prepare the data again"
        ]
    )


def _decoded(data: bytes, storage: Storage, shards: ShardSet, shard: Shard) -> bytes:
    """A shard of encoded images as one of raw pixels."""
    encoded, labels = read_encoded(data)
    try:
        images = decode_all(encoded, shape=shards.shape)
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"an image of {storage.uri}/{shard.file} cannot be decoded: {error}"]
        ) from None
    if hashlib.sha256(images.data).hexdigest() != shard.pixels_sha256:
        raise ConfigError(
            [
                f"the {shards.encoding} images of {storage.uri}/{shard.file} decode to other "
                f"pixels here than where they were prepared; install the Pillow that was used "
                f"there, or prepare the data here"
            ]
        )
    return raw_shard(images, labels)


class Fetchers:
    """A few threads that fill a cache ahead of time, in the order in which shards are named."""

    def __init__(self, cache: ShardCache, storage: Storage, shards: ShardSet):
        self._cache, self._storage, self._shards = cache, storage, shards
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._named: dict[int, None] = {}
        self._threads: list[threading.Thread] = []

    def expect(self, numbers: np.ndarray) -> None:
        """Says that shards of these numbers will be read soon; returns at once."""
        for number in numbers.tolist():
            if number not in self._named and not self._cache.holds(self._shards.shards[number]):
                self._named[number] = None
                self._todo.put(number)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(min(FETCHERS, len(self._named)) - len(self._threads)):
            thread = threading.Thread(target=self._work, name="shard fetcher", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            try:
                number = self._todo.get(timeout=IDLE_SEC)
            except queue.Empty:
                return
            try:
                self._cache.path(self._storage, self._shards, self._shards.shards[number])
            except Exception as error:  # whoever reads the shard meets it too, and says so
                log.warning("shard %d could not be read ahead: %s", number, error)
            finally:
                self._named.pop(number, None)

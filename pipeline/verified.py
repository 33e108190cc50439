"""Files read against their checksums, and what is remembered of it, so that a start need not read
all data again.

~/.cache/forger/verified/<sha256 of the set's place>.json    by file: its checksum, and the file
                                                             system's word on it when it was read
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from typing import Any

from pipeline.dataset import ShardSet
from pipeline.folder import Folder
from pipeline.parts import file_sha256
from pipeline.shard_cache import cache_folder

SETTLED_SEC = 2.0  # a file changed more lately could change again under the same time stamp


def read_against_checksums(storage: Folder, shards: ShardSet) -> list[str]:
    """The shards that are missing or damaged, in words.

    A file is not read again while its inode, size and both of its times are what they were after
    it was read: a write moves the time of change, which only the kernel sets. What the disk itself
    loses between two readings is not seen; `forget` makes the next one complete.
    """
    known, seen, mistakes = _remembered(shards), {}, []
    for shard in shards.shards:
        path = storage.path(shard.file)
        try:
            stamp = _stamp(path)
            if known.get(shard.file) != [shard.sha256, *stamp]:
                if file_sha256(path) != shard.sha256:
                    mistakes.append(f"{path} is damaged (its sha256 differs from the index)")
                    continue
                stamp = stamp if _stamp(path) == stamp else None
        except FileNotFoundError:
            mistakes.append(f"{path} is missing")
            continue
        if stamp is not None and time.time() - max(stamp[2:]) / 1e9 > SETTLED_SEC:
            seen[shard.file] = [shard.sha256, *stamp]
    if seen != known:
        _remember(shards, seen)
    return mistakes


def forget(shards: ShardSet) -> None:
    """Makes the next verification read every file again."""
    with contextlib.suppress(OSError):
        os.unlink(_memory().path(_name(shards)))


def _stamp(path: Any) -> list[int]:
    stat = os.stat(path)
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _memory() -> Folder:
    return Folder(cache_folder("verified"))


def _name(shards: ShardSet) -> str:
    return hashlib.sha256(shards.uri.encode()).hexdigest()[:32] + ".json"


def _remembered(shards: ShardSet) -> dict[str, list[Any]]:
    try:
        return json.loads(_memory().read(_name(shards)))
    except (OSError, ValueError):  # never verified here, or no longer to be read: both mean read
        return {}


def _remember(shards: ShardSet, seen: dict[str, list[Any]]) -> None:
    with contextlib.suppress(OSError):  # no home to write to: then every start reads all
        _memory().write(_name(shards), json.dumps(seen).encode())

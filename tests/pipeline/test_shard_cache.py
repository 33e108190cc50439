"""The cache of shards: fetched once for all processes, verified, bounded, whole after any kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from gan.config import ConfigError
from gan.world import World
from pipeline.data_config import DataConfig
from pipeline.dataset import ShardSet, open_shards
from pipeline.folder import Folder
from pipeline.loader import batches
from pipeline.parts import file_sha256
from pipeline.shard_cache import Fetchers, ShardCache, raw_bytes
from pipeline.shards import ShardReader, ShardWriter, verify_shards
from pipeline.storage import open_storage
from tests.conftest import striped_images
from tests.pipeline.servers import Missing, make_bucket, or_skip, s3

PER_SHARD = 10
BUCKET = "images"


class Counted(Folder):
    """A folder that counts what is read of it, and may take its time."""

    def __init__(self, root: str, seconds: float = 0.0):
        super().__init__(root)
        self.reads: list[str] = []
        self.seconds = seconds

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        time.sleep(self.seconds)
        return super().read(name)


def encoded_set(folder: Path | str, count: int = 100) -> ShardSet:
    """Striped images as PNG, ten a shard: they go through the cache wherever they are."""
    writer = ShardWriter(str(folder), encoding="png", shard_bytes=64 * PER_SHARD)
    for image, label in striped_images(count):
        writer.add(image[None], [label])
    return writer.finish(classes=("a", "b"), origin={})


def numbers_of(samples: torch.Tensor) -> list[int]:
    return (samples[:, 0, 0, 0].int() * 256 + samples[:, 0, 0, 1]).tolist()


def test_a_shard_is_fetched_once_and_files_hold_what_readers_see(tmp_path):
    made = encoded_set(tmp_path / "set")
    storage = Counted(made.uri)
    for _ in range(2):
        cache = ShardCache(tmp_path / "cache", limit_bytes=10**9)
        reader = ShardReader(made, storage=storage, cache=cache)
        images, _ = reader.take(np.arange(100)[::-1])
        assert numbers_of(images) == list(range(100))[::-1]
    assert sorted(storage.reads) == sorted(shard.file for shard in made.shards)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_threads_that_want_the_same_shard_wait_for_one_fetch(tmp_path):
    made = encoded_set(tmp_path / "set")
    storage = Counted(made.uri, seconds=0.2)
    caches = [ShardCache(tmp_path / "cache", limit_bytes=10**9) for _ in range(4)]  # as processes
    threads = [
        threading.Thread(target=cache.path, args=(storage, made, made.shards[0]))
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(storage.reads) == 1


def test_the_shards_used_longest_ago_make_room_and_the_limit_holds(tmp_path):
    made = encoded_set(tmp_path / "set")
    sizes = ShardCache(tmp_path / "other", limit_bytes=10**9)
    one = sizes.path(Folder(made.uri), made, made.shards[0]).stat().st_size
    storage, cache = Counted(made.uri), ShardCache(tmp_path / "cache", limit_bytes=3 * one)
    largest = 0
    for number in (0, 1, 2, 0, 3, 0, 4, 0, 5):
        cache.path(storage, made, made.shards[number])
        time.sleep(0.01)
        files = list((tmp_path / "cache").glob("*.arrow"))
        largest = max(largest, sum(file.stat().st_size for file in files))
    assert largest <= 3 * one
    assert storage.reads.count(made.shards[0].file) == 1  # always among those used last
    assert cache.holds(made.shards[5])
    assert not cache.holds(made.shards[1])


def test_a_reader_goes_on_where_its_shards_were_removed_under_it(tmp_path):
    made = encoded_set(tmp_path / "set")
    cache = ShardCache(tmp_path / "cache", limit_bytes=2 * raw_bytes(made, PER_SHARD))
    reader = ShardReader(made, cache=cache)
    for start in range(0, 100, PER_SHARD):
        images, _ = reader.take(np.array([0, start, 99, 0]))
        assert numbers_of(images) == [0, start, 99, 0]
        for file in (tmp_path / "cache").glob("*.arrow"):
            file.unlink()


def test_a_flipped_byte_is_named_before_its_images_are_used(tmp_path):
    made = encoded_set(tmp_path / "set")
    damaged = tmp_path / "set" / made.shards[3].file
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    cache = ShardCache(tmp_path / "cache", limit_bytes=10**9)
    reader = ShardReader(made, cache=cache)
    reader.take(np.arange(30))
    with pytest.raises(ConfigError, match=f"{made.shards[3].file} is damaged"):
        reader.take(np.arange(30, 31))
    assert not cache.holds(made.shards[3])
    damaged.unlink()
    with pytest.raises(ConfigError, match=f"{made.shards[3].file} is missing"):
        reader.take(np.arange(30, 31))


def test_what_was_damaged_on_its_way_only_is_fetched_again(tmp_path):
    made = encoded_set(tmp_path / "set")

    class Lossy(Counted):
        def read(self, name: str) -> bytes:
            data = super().read(name)
            return data if len(self.reads) > 1 else data[:-1] + b"!"

    storage = Lossy(made.uri)
    cache = ShardCache(tmp_path / "cache", limit_bytes=10**9)
    assert cache.path(storage, made, made.shards[0]).exists()
    assert len(storage.reads) == 2


def test_images_that_decode_to_other_pixels_than_they_were_prepared_from_are_refused(tmp_path):
    made = encoded_set(tmp_path / "set", 10)
    index = (tmp_path / "set" / "index.json").read_text()
    assert made.shards[0].pixels_sha256 is not None
    (tmp_path / "set" / "index.json").write_text(
        index.replace(made.shards[0].pixels_sha256, "0" * 64)
    )
    with pytest.raises(ConfigError, match="decode to other pixels"):
        ShardReader(
            open_shards(made.uri), cache=ShardCache(tmp_path / "cache", limit_bytes=10**9)
        ).take(np.arange(1))


def test_a_cache_that_cannot_hold_a_shard_is_refused(tmp_path):
    made = encoded_set(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"data\.cache_gb must hold a shard"):
        ShardReader(made, cache=ShardCache(tmp_path / "cache", limit_bytes=100))


def test_shards_are_fetched_ahead_and_the_thread_that_reads_finds_them_there(tmp_path):
    made = encoded_set(tmp_path / "set")
    storage, cache = Counted(made.uri, seconds=0.05), ShardCache(tmp_path, limit_bytes=10**9)
    fetchers = Fetchers(cache, storage, made)
    fetchers.expect(np.arange(10))
    deadline = time.monotonic() + 120
    while not all(map(cache.holds, made.shards)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(storage.reads) == 10
    fetchers.expect(np.arange(10))
    ShardReader(made, storage=storage, cache=cache).take(np.arange(100))
    assert len(storage.reads) == 10


KILLED = """
import sys, os
from pipeline.dataset import open_shards
from pipeline.shard_cache import ShardCache
from pathlib import Path

made, cache = open_shards(sys.argv[1]), ShardCache(Path(sys.argv[2]), limit_bytes=10**9)
from pipeline.storage import open_storage
replace = os.replace
def stuck(*names):
    print("written", flush=True)
    sys.stdin.read()
os.replace = stuck
cache.path(open_storage(made.uri), made, made.shards[0])
"""


@pytest.mark.slow
def test_a_process_killed_while_it_fetches_leaves_nothing_that_blocks_or_misleads(tmp_path):
    made = encoded_set(tmp_path / "set")
    command = [sys.executable, "-c", KILLED, made.uri, str(tmp_path / "cache")]
    victim = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "written\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    cache = ShardCache(tmp_path / "cache", limit_bytes=10**9)
    assert not cache.holds(made.shards[0])
    images, _ = ShardReader(made, cache=cache).take(np.arange(10))
    assert numbers_of(images) == list(range(10))
    assert not list((tmp_path / "cache").glob("*.part"))


def test_files_that_nobody_touched_are_not_read_again_and_a_change_is_seen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.verified.SETTLED_SEC", -1.0)
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("pipeline.verified.file_sha256", counted)
    made = encoded_set(tmp_path / "set", 30)
    verify_shards(made)
    assert len(read) == 3
    verify_shards(made)
    assert len(read) == 3
    file = tmp_path / "set" / made.shards[1].file
    stat, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps times would
    with pytest.raises(ConfigError, match=f"{file.name} is damaged"):
        verify_shards(made)
    assert len(read) == 4
    with pytest.raises(ConfigError, match=f"{file.name} is damaged"):  # and is not forgotten
        verify_shards(made)


def test_files_changed_a_moment_ago_are_not_taken_on_trust(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipeline.verified.SETTLED_SEC", 3600.0)
    made = encoded_set(tmp_path / "set", 10)
    verify_shards(made)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_set_in_a_bucket_plays_as_one_in_a_folder_with_a_cold_and_a_warm_cache(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ExitStack() as running:
        try:
            environment = running.enter_context(s3())
        except Missing as error:
            or_skip(error)
        make_bucket(environment, BUCKET)
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        for encoding in ("raw", "webp"):
            made = {}
            for uri in (str(tmp_path / encoding), f"s3://{BUCKET}/{encoding}"):
                writer = ShardWriter(uri, encoding=encoding, shard_bytes=64 * PER_SHARD)
                for image, label in striped_images(100):
                    writer.add(image[None], [label])
                made[uri] = writer.finish(classes=("a", "b"), origin={})
            local, remote = (open_shards(uri) for uri in made)
            assert remote.digest == local.digest
            verify_shards(remote)
            data = DataConfig(shuffle="window", lanes=4, window=10)
            for _ in ("cold", "warm"):
                for rank in range(2):
                    options = {"seed": 1, "batch_size": 14, "first_batch": 3, "data": data,
                               "world": World(rank, 2)}  # fmt: skip
                    near, far = (batches(ShardReader(s), **options) for s in (local, remote))
                    for a, b in islice(zip(near, far, strict=True), 20):
                        assert torch.equal(a.samples, b.samples)
            open_storage(remote.uri).delete(remote.shards[0].file)
            with pytest.raises(ConfigError, match=f"{remote.shards[0].file} is missing"):
                verify_shards(remote)

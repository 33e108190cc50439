"""Batches: the right images in the right order, read ahead, from folders and through the cache."""

from __future__ import annotations

import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from gan.config import ConfigError
from gan.world import World
from pipeline.data_checks import check_data
from pipeline.data_config import DataConfig
from pipeline.loader import batches
from pipeline.order import FullShuffle, flips
from pipeline.shards import ShardReader, write_shards
from tests.conftest import striped_images

ROOT = Path(__file__).parents[2]


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


def numbers_of(samples: torch.Tensor) -> list[int]:
    """The numbers that striped images carry."""
    return (samples[:, 0, 0, 0].int() * 256 + samples[:, 0, 0, 1]).tolist()


def first_batches(reader: ShardReader, count: int, data: DataConfig, **changes):
    options = {"seed": 3, "batch_size": 12, "first_batch": 0, "world": World()} | changes
    return list(islice(batches(reader, data=data, **options), count))


@pytest.mark.parametrize("encoding", ["raw", "png", "webp"])
def test_every_setting_plays_any_encoding_the_same(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = write_shards(str(tmp_path / "raw"), striped_images(100), classes=("a", "b"), origin={})
    made = write_shards(
        str(tmp_path / encoding / "set"),
        striped_images(100),
        classes=("a", "b"),
        origin={},
        encoding=encoding,
    )
    for data in (
        DataConfig(),
        DataConfig(shuffle="window", lanes=3, window=11),
        DataConfig(balance="classes", class_weights=(1, 3)),
        DataConfig(flip=True),
    ):
        expected = first_batches(ShardReader(raw), 20, data)
        got = first_batches(ShardReader(made), 20, data)
        for a, b in zip(expected, got, strict=True):
            assert torch.equal(a.samples, b.samples)
            assert a.labels is not None
            assert b.labels is not None
            assert torch.equal(a.labels, b.labels)


def test_weighted_classes_come_three_to_one_whatever_the_data_holds(stripes):
    data = DataConfig(balance="classes", class_weights=(1, 3))
    for batch in first_batches(ShardReader(stripes), 10, data):
        assert batch.labels is not None
        assert batch.labels.sum() == 9
        assert [n % 2 for n in numbers_of(batch.samples)] == batch.labels.tolist()


def test_mirrored_images_are_those_that_the_position_says(stripes):
    reader = ShardReader(stripes)
    plain = first_batches(reader, 4, DataConfig())
    for rank in range(3):
        share = World(rank, 3).share(12)
        mirrored = first_batches(reader, 4, DataConfig(flip=True), world=World(rank, 3))
        for index, (a, b) in enumerate(zip(plain, mirrored, strict=True)):
            positions = np.arange(share.start, share.stop) + index * 12
            for row, tossed in enumerate(flips(positions, seed=3)):
                image = a.samples[share][row]
                assert torch.equal(b.samples[row], image.flip(2) if tossed else image)


def test_a_batch_is_read_while_the_one_before_is_used_and_the_thread_ends_with_the_stream(
    stripes, monkeypatch
):
    monkeypatch.setattr("pipeline.loader.GOODBYE_SEC", 60)
    before = set(threading.enumerate())

    def reading() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "batches" and t not in before]

    stream = batches(ShardReader(stripes), seed=0, batch_size=4, first_batch=0, world=World())
    assert len(reading()) == 0
    next(stream)
    assert len(reading()) == 1
    stream.close()  # as the garbage collector does
    assert not reading()


LEAVING = """
import atexit, sys, threading, time
from gan.world import World
from pipeline.dataset import open_shards
from pipeline import loader
from pipeline.loader import batches
from pipeline.shards import ShardReader

loader.GOODBYE_SEC = 60
# Called after all that is registered later.
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))
reader, reads = ShardReader(open_shards(sys.argv[1])), []
take = reader.take

def slow(numbers):
    reads.append(1)
    time.sleep(0.3 if len(reads) > 1 else 0)
    return take(numbers)

reader.take = slow
stream = batches(reader, seed=0, batch_size=4, first_batch=0, world=World())
next(stream)
"""


def test_the_thread_ends_before_an_interpreter_that_leaves_in_the_middle(stripes):
    """Else it could be inside torch at that moment, which aborts the process."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, stripes.uri], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['MainThread']"


def test_what_goes_wrong_while_reading_ahead_is_raised_where_the_batch_is_asked_for(tmp_path):
    made = write_shards(str(tmp_path), striped_images(20), classes=("a", "b"), origin={})
    (tmp_path / made.shards[0].file).unlink()
    with pytest.raises(FileNotFoundError):
        next(batches(ShardReader(made), seed=0, batch_size=4, first_batch=0, world=World()))


def test_small_sets_wrap_around_within_a_batch(tmp_path):
    made = write_shards(str(tmp_path), striped_images(5), classes=("a", "b"), origin={})
    taken = [n for batch in first_batches(ShardReader(made), 5, DataConfig()) for n in
             numbers_of(batch.samples)]  # fmt: skip
    assert taken == FullShuffle().numbers(np.arange(60), num_images=5, seed=3).tolist()


def test_settings_that_do_not_fit_the_data_are_refused(tmp_path, stripes):
    bare = write_shards(
        str(tmp_path / "bare"), [(i, -1) for i, _ in striped_images(9)], classes=(), origin={}
    )
    lopsided = write_shards(
        str(tmp_path / "lopsided"), striped_images(9), classes=("a", "b", "none"), origin={}
    )
    png = write_shards(
        str(tmp_path / "png"), striped_images(9), classes=("a", "b"), origin={}, encoding="png"
    )
    balanced = DataConfig(balance="classes")
    for shards, data, said in (
        (bare, balanced, "needs labels"),
        (stripes, DataConfig(balance="classes", class_weights=(1,)), "each of the 2 classes"),
        (lopsided, balanced, r"without images: \['none'\]"),
        (png, DataConfig(cache_gb=1e-7), "data.shuffle = 'window'"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_data(data, shards)
    check_data(DataConfig(balance="classes", class_weights=(1, 1, 0)), lopsided)

"""A bucket behind a network that fails: patience where it helps, a clear end where it does not."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipeline import patience
from pipeline.bucket import Bucket
from pipeline.storage import StorageError
from tests.pipeline.proxy import FaultyProxy
from tests.pipeline.servers import BUCKET

pytestmark = pytest.mark.slow
DATA = random.Random(0).randbytes(16 * 2**20)


@pytest.fixture
def proxy(ceph, s3_uri, monkeypatch) -> Iterator[FaultyProxy]:
    monkeypatch.setattr("pipeline.patience.FIRST_PAUSE_SEC", 0.05)
    monkeypatch.setattr("pipeline.bucket.LARGE_BYTES", 6 * 2**20)
    monkeypatch.setattr("pipeline.bucket.PART_BYTES", 5 * 2**20)
    with FaultyProxy(ceph["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.uri)
        yield proxy


@pytest.fixture
def storage(proxy) -> Bucket:
    return Bucket(BUCKET, uuid.uuid4().hex)


def hasty(storage: Bucket) -> Bucket:
    """The same place, given up soon."""
    return Bucket(BUCKET, storage.prefix, retry_sec=1)


def test_a_burst_of_503_is_ridden_through(proxy, storage):
    proxy.mode = "503"

    def heal() -> None:  # by what came, not by the clock: the pauses are drawn
        while len(proxy.faults) < 4:
            time.sleep(0.01)
        proxy.mode = None

    threading.Thread(target=heal, daemon=True).start()
    storage.write("name", b"1")
    assert storage.read("name") == b"1"
    assert len(proxy.faults) >= 4


@pytest.mark.parametrize("mode", ["503", "cut", "lost", "silent"])
def test_a_store_that_never_comes_back_is_given_up_after_the_deadline(
    proxy, storage, monkeypatch, mode
):
    storage.write("name", b"old")
    if mode == "silent":
        monkeypatch.setattr("pipeline.patience.READ_SEC", 1)
    proxy.mode = mode
    for call in (lambda: hasty(storage).read("name"), lambda: hasty(storage).names()):
        begun = time.monotonic()
        with pytest.raises(StorageError, match=r"given up after \d+ attempts, 1 s without"):
            call()
        assert time.monotonic() - begun < patience.RETRY_SEC / 2
    proxy.mode = None
    assert storage.read("name") == b"old"


@pytest.mark.parametrize("mode", ["503", "cut", "lost"])
def test_large_objects_come_and_go_whole_through_many_faults(proxy, storage, mode):
    storage.write("name", b"old")
    proxy.mode, proxy.share = mode, 0.3
    storage.write("name", DATA)
    assert storage.read("name") == DATA
    with storage.local("name") as path:
        assert path.read_bytes() == DATA
    with storage.publishing("other") as path:
        path.write_bytes(DATA)
    assert storage.names() == ["name", "other"]
    proxy.mode = None
    assert proxy.faults
    assert storage.read("other") == DATA
    assert storage.sweep() == []


def test_a_download_that_is_cut_goes_on_where_it_was(proxy, storage, monkeypatch):
    """It gets on each time, so that its patience begins anew: two cuts take more than there is."""
    storage.write("name", DATA)
    clock = SimpleNamespace(monotonic=lambda: 0.7 * len(proxy.faults), sleep=time.sleep)
    monkeypatch.setattr("pipeline.patience.time", clock)
    proxy.mode = "cut"
    proxy.applies = lambda method, path: method == "GET" and len(proxy.faults) < 4
    assert hasty(storage).read("name") == DATA
    assert len(proxy.faults) == 4


def test_an_upload_in_parts_that_fails_leaves_nothing_behind(proxy, storage):
    storage.write("name", b"old")
    proxy.mode = "503"
    proxy.applies = lambda method, path: "partNumber=3" in path
    with pytest.raises(StorageError, match="given up"):
        hasty(storage).write("name", DATA)
    assert storage.read("name") == b"old"
    assert storage.sweep() == []


@pytest.mark.parametrize("lost", ["uploads", "uploadId"], ids=["beginning", "completion"])
def test_an_upload_whose_success_was_lost_is_known_as_its_own(proxy, storage, lost):
    proxy.mode = "lost"
    proxy.applies = lambda method, path: (
        method == "POST" and f"{lost}" in path and not proxy.faults
    )
    storage.write("name", DATA)
    assert len(proxy.faults) == 1
    assert storage.read("name") == DATA
    assert storage.sweep() == []


def test_a_creation_whose_success_was_lost_is_known_as_its_own(proxy, storage):
    proxy.mode = "lost"
    proxy.applies = lambda method, path: method == "PUT" and not proxy.faults
    assert storage.create("name", b"mine")
    assert len(proxy.faults) == 1
    assert not storage.create("name", b"another's")
    assert storage.read("name") == b"mine"


def test_slow_answers_are_waited_for(proxy, storage):
    proxy.mode, proxy.slow_sec = "slow", 0.3
    storage.write("name", b"1")
    assert storage.read("name") == b"1"
    assert len(proxy.faults) == 2

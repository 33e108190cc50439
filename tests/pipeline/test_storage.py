"""The storage contract, on a folder and in a real bucket: published whole or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from gan.config import ConfigError
from pipeline.folder import Folder
from pipeline.storage import Storage, StorageError, download_object, open_storage
from tests.pipeline.servers import open_folder

LARGE = 16 * 2**20  # bytes; four parts, as `in_parts` cuts it


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request, tmp_path) -> Storage:
    if request.param == "folder":
        return Folder(tmp_path / "root")
    return open_storage(request.getfixturevalue("s3_uri"))


@pytest.fixture
def in_parts(monkeypatch) -> bytes:
    """Data that is uploaded in parts of the smallest size that stores take."""
    monkeypatch.setattr("pipeline.bucket.LARGE_BYTES", 6 * 2**20)
    monkeypatch.setattr("pipeline.bucket.PART_BYTES", 5 * 2**20)
    return random.Random(0).randbytes(LARGE)


# --- the contract -----------------------------------------------------------------------------


def test_what_is_written_is_read_listed_and_deleted(storage):
    storage.write("a/b/one", b"1")
    storage.write("a/two", b"2")
    storage.write("a/two", b"22")
    storage.write("ab/three", b"")
    assert storage.read("a/two") == b"22"
    assert storage.read("ab/three") == b""
    assert storage.names() == ["a/b/one", "a/two", "ab/three"]
    assert storage.names("a") == ["a/b/one", "a/two"]
    assert storage.names("nowhere") == storage.names("a/two") == []
    storage.delete("a/b/one")
    storage.delete("a/b/one")
    assert not storage.exists("a/b/one")
    assert not storage.exists("a/b")
    assert not storage.exists("a")
    assert storage.names() == ["a/two", "ab/three"]


@pytest.mark.parametrize("name", ["nothing", "a", "file/below"])
def test_a_name_without_a_file_is_not_found(storage, name):
    storage.write("a/file", b"1")
    storage.write("file", b"1")
    assert not storage.exists(name)
    with pytest.raises(FileNotFoundError):
        storage.read(name)
    with pytest.raises(FileNotFoundError), storage.local(name):
        pass


def test_odd_names_come_back_as_they_were_given(storage):
    names = sorted(["a b/c+d", "100%", "%20", "ü/#?&=", "a//b".replace("//", "/"), "~.-_'()"])
    for name in names:
        storage.write(name, name.encode())
    assert storage.names() == names
    assert [storage.read(name).decode() for name in names] == names


def test_long_listings_have_every_name_once(storage, monkeypatch):
    monkeypatch.setattr("pipeline.bucket.PAGE_KEYS", 4)
    names = [f"n/{number:02d}" for number in range(13)]
    for name in names:
        storage.write(name, b"")
    assert storage.names() == names


def test_a_file_is_published_when_its_block_ends_and_read_from_a_path(storage, in_parts):
    with storage.publishing("big") as path:
        path.write_bytes(in_parts)
        assert not storage.exists("big")
    with storage.local("big") as path:
        assert path.read_bytes() == in_parts
    storage.write("as-big", in_parts)
    assert storage.read("as-big") == in_parts
    assert storage.names() == ["as-big", "big"]
    assert storage.sweep() == []


def test_a_writer_that_fails_leaves_the_old_bytes_and_no_litter(storage):
    storage.write("name", b"old")

    def fail() -> None:
        with storage.publishing("name") as part:
            part.write_bytes(b"half of the n")
            assert storage.read("name") == b"old"
            assert storage.names() == ["name"]
            raise OSError("the caller's own trouble")

    with pytest.raises(OSError, match="the caller's own trouble"):
        fail()
    assert storage.read("name") == b"old"
    assert storage.names() == ["name"]
    assert storage.sweep() == []


def test_of_many_writers_exactly_one_creates_a_name(storage):
    with ThreadPoolExecutor(8) as pool:
        for number in range(4):
            name = f"who/{number}"
            won = list(pool.map(lambda n, name=name: storage.create(name, b"%d" % n), range(8)))
            assert sum(won) == 1
            assert storage.read(name) == b"%d" % won.index(True)
            assert storage.create(name, b"%d" % won.index(True))  # a repeat of the winner's
    assert len(storage.names()) == 4
    assert storage.sweep() == []


def test_storages_below_and_beside_share_the_files(storage):
    run = storage.below("runs/one")
    run.write("a", b"1")
    assert storage.names() == ["runs/one/a"]
    assert run.beside("two").uri == storage.below("runs/two").uri
    assert open_storage(run.uri).read("a") == b"1"
    assert run.below(".").uri == run.uri
    assert f"{storage.uri}/runs/one" == run.uri


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd"])
def test_names_stay_inside_the_root(storage, name):
    for method in (storage.read, storage.exists, storage.delete, storage.below, storage.names):
        with pytest.raises(ValueError, match="outside"):
            method(name)
    with pytest.raises(ValueError, match="outside"):
        storage.write(name, b"")


def test_one_process_of_a_machine_holds_the_lock(storage):
    with (
        storage.locked("first"),
        pytest.raises(ConfigError, match="second"),
        storage.locked("second"),
    ):
        pass
    with storage.locked("third"):
        pass


@pytest.mark.parametrize("uri", ["gs://bucket/runs", "s3://", "s3:///runs", "s3://bucket/../x"])
def test_kinds_that_are_not_supported_are_refused(uri):
    with pytest.raises(ConfigError, match="s3://bucket"):
        open_storage(uri)


# --- a folder ---------------------------------------------------------------------------------


def test_folders_that_a_deletion_leaves_empty_are_gone(tmp_path):
    storage = Folder(tmp_path)
    storage.write("a/b/one", b"1")
    storage.delete("a/b/one")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writers_part_is_no_name_and_is_swept(tmp_path):
    program = """
import os, signal, sys
from pipeline.folder import Folder
with Folder(sys.argv[1]).publishing("a/name") as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    storage = Folder(tmp_path)
    assert storage.names() == []
    assert storage.sweep(but="a") == storage.sweep(deep=False) == []  # spared
    (swept,) = storage.sweep()
    assert swept.startswith("a/.name-")
    assert list((tmp_path / "a").iterdir()) == []


@contextmanager
def small_disk(folder, *, kib: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_with_what_it_lacks_and_the_old_file_stays(tmp_path):
    with small_disk(tmp_path, kib=64):
        storage = Folder(tmp_path)
        storage.write("name", b"old")
        with pytest.raises(StorageError, match=r"full: 200,000 bytes are needed, [\d,]+ bytes"):
            storage.write("name", bytes(200_000))
        with pytest.raises(StorageError, match="full: 200,000 bytes are needed"):
            storage.create("other", bytes(200_000))
        with pytest.raises(StorageError, match="full"), storage.publishing("name") as part:
            part.write_bytes(bytes(200_000))
        assert storage.read("name") == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["name"]
        storage.write("name", b"new")  # there is room for that


def test_a_folder_without_permission_says_so():
    with open_folder("forger-test-") as folder:
        storage = Folder(folder)
        storage.write("name", b"old")
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:  # whom no mode holds back
            os.seteuid(65534)
        try:
            for write in (storage.write, storage.create):
                with pytest.raises(StorageError, match=r"no permission for .*Permission denied"):
                    write("name", b"new")
            with pytest.raises(StorageError, match="no permission"):
                storage.delete("name")
            assert storage.read("name") == b"old"
        finally:
            if root:
                os.seteuid(0)
        folder.chmod(0o755)
        assert storage.names() == ["name"]


def test_an_error_of_the_callers_own_files_is_not_the_storages(tmp_path):
    with pytest.raises(PermissionError), Folder(tmp_path).publishing("name"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere")


# --- a bucket's troubles ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "does not know the access key.*InvalidAccessKeyId"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "secret key is not the access key's"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials"),
    ],
    ids=["key", "secret", "none"],
)
def test_a_wrong_key_is_named_at_once_by_every_call(s3_uri, monkeypatch, tmp_path, change, told):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    storage = open_storage(s3_uri)
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    assert_refused(storage, told)
    with pytest.raises(ConfigError, match=told):
        download_object(f"{s3_uri}/object")


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_named_at_once_by_every_call(s3_uri):
    assert_refused(open_storage("s3://no-such-bucket/runs"), "there is no bucket 'no-such-bucket'")


def assert_refused(storage: Storage, told: str) -> None:
    begun = time.monotonic()
    for call in (
        lambda: storage.read("name"),
        lambda: storage.exists("name"),
        lambda: storage.names(),
        lambda: storage.write("name", b""),
        lambda: storage.create("name", b""),
    ):
        with pytest.raises(StorageError, match=told):
            call()
    assert time.monotonic() - begun < 60  # patience with a single one is longer


@pytest.mark.slow
def test_a_bucket_takes_no_client_along_to_another_process(s3_uri):
    storage = open_storage(s3_uri)
    storage.write("name", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("name") == b"1"


@pytest.mark.slow
def test_an_object_of_the_store_is_downloaded_by_its_address(s3_uri):
    open_storage(s3_uri).write("folder/object", b"weights")
    assert download_object(f"{s3_uri}/folder/object") == b"weights"
    with pytest.raises(ConfigError, match="not there"):
        download_object(f"{s3_uri}/folder/other")


@pytest.mark.slow
def test_an_upload_that_was_killed_is_swept_by_the_next_of_its_name(s3_uri, in_parts):
    program = """
import os, signal, sys
import pipeline.bucket
from pipeline.storage import open_storage
pipeline.bucket.LARGE_BYTES = 6 * 2**20
pipeline.bucket.PART_BYTES = 5 * 2**20
pipeline.bucket.NUM_THREADS = 1
storage = open_storage(sys.argv[1])
def piece(start, stop):
    if start:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(stop - start)
storage._put("big", 16 * 2**20, piece)
"""
    storage = open_storage(s3_uri)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, s3_uri])
        assert done.returncode == -signal.SIGKILL
    assert storage.names() == []
    storage.write("big", in_parts)
    assert storage.sweep() == []
    subprocess.run([sys.executable, "-c", program, s3_uri])
    assert storage.sweep() == ["big"]
    assert storage.sweep() == []
    assert storage.read("big") == in_parts


@pytest.mark.slow
def test_a_gateway_killed_in_mid_upload_and_in_mid_read_loses_nothing(ceph, s3_uri, in_parts):
    from pipeline.bucket import Bucket

    storage = open_storage(s3_uri)
    assert isinstance(storage, Bucket)
    data = in_parts * 4

    def kill_and_restart() -> None:
        ceph.kill()
        time.sleep(1)
        ceph.restart()

    def during(call, begun) -> None:
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(call)
            while not begun() and not done.done():
                time.sleep(0.01)
            under_way = not done.done()
            kill_and_restart()
            done.result(timeout=600)
            assert under_way

    half_way = threading.Event()

    def piece(start: int, stop: int) -> bytes:
        if start > len(data) / 2:
            half_way.set()
        return data[start:stop]

    during(lambda: storage._put("big", len(data), piece), half_way.is_set)
    found: list[bytes] = []
    during(lambda: found.extend(storage.read("big") for _ in range(8)), lambda: found)
    assert all(each == data for each in found)
    assert storage.names() == ["big"]
    assert storage.sweep() == []


@pytest.mark.slow
def test_a_gateway_that_stands_still_is_waited_for(ceph, s3_uri, monkeypatch):
    monkeypatch.setattr("pipeline.patience.READ_SEC", 1)
    storage = open_storage(s3_uri)
    with ceph.frozen():
        going_on = threading.Timer(3, lambda: os.killpg(ceph.gateway.pid, signal.SIGCONT))
        going_on.start()
        storage.write("name", b"1")
    assert storage.read("name") == b"1"

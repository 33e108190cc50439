"""One writer a run: processes race, die, fall asleep and wake."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from gan.config import ConfigError
from pipeline import lease
from pipeline.folder import Folder
from pipeline.lease import FencedError, check_token, records, take
from pipeline.storage import Storage, StorageError, open_storage
from tests.pipeline.servers import DEADLINE_SEC

pytestmark = pytest.mark.slow
BEAT_SEC, LEASE_SEC = 0.3, 2.5
HOLDER = """
import sys, time
from gan.config import ConfigError
from pipeline import lease
from pipeline.storage import open_storage
lease.BEAT_SEC, lease.LEASE_SEC, lease.POLL_SEC = 0.3, float(sys.argv[2]), 0.05
storage = open_storage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease.take(storage, who="the holder", note={"journalled": 7}) as mine:
        print("held", mine.token, flush=True)
        sys.stdin.readline()
        mine.check()
        print("checked", flush=True)
except ConfigError as error:
    print("refused", error, flush=True)
except lease.FencedError as error:
    print("fenced", error, flush=True)
"""


@pytest.fixture(params=["folder", "s3"])
def storage(request, tmp_path, monkeypatch) -> Storage:
    monkeypatch.setattr(lease, "BEAT_SEC", BEAT_SEC)
    monkeypatch.setattr(lease, "LEASE_SEC", LEASE_SEC)
    monkeypatch.setattr(lease, "POLL_SEC", 0.05)
    if request.param == "folder":
        return Folder(tmp_path / "run")
    return open_storage(request.getfixturevalue("s3_uri"))


@pytest.fixture
def looks(monkeypatch) -> list[int]:
    """The tokens whose beat was looked at."""
    looked, look = [], lease._last_beat

    def counted(storage: Storage, token: int) -> bytes:
        looked.append(token)
        return look(storage, token)

    monkeypatch.setattr(lease, "_last_beat", counted)
    return looked


@contextmanager
def holders(storage: Storage, count: int, *, lease_sec: float = LEASE_SEC) -> Iterator[list]:
    """Processes that are ready to take the lease once they are told to `go`."""
    command = [sys.executable, "-c", HOLDER, storage.uri, str(lease_sec)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    try:
        assert [said(holder) for holder in started] == ["ready"] * count
        yield started
    finally:
        for holder in started:
            holder.kill()
            holder.communicate()


def go(holder: subprocess.Popen) -> None:
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()


def said(holder: subprocess.Popen) -> str:
    assert holder.stdout is not None
    return holder.stdout.readline().strip()


def hold_elsewhere(storage: Storage) -> None:
    """Lease 2 is a process's of another machine."""
    with take(storage, who="me", note={}) as mine:
        pass
    owner = dataclasses.replace(mine.record.owner, place="elsewhere", pid=2**30, id="other")
    record = dataclasses.asdict(dataclasses.replace(mine.record, token=2, owner=owner))
    assert storage.create("lease/000002.json", json.dumps(record).encode())


def test_of_processes_that_race_exactly_one_writes_and_the_others_are_told_who(storage):
    with holders(storage, 4, lease_sec=60) as racing:
        for holder in racing:
            go(holder)
        words = sorted((said(holder), holder.pid) for holder in racing)
        assert [word.split()[0] for word, _ in words] == ["held", "refused", "refused", "refused"]
        assert words[0][0] == "held 1"
        for word, _ in words[1:]:
            assert f"being written by the holder (host {os.uname().nodename}, pid " in word
            assert f"pid {words[0][1]}, for " in word
    assert [record.token for record in records(storage)] == [1]


def test_a_killed_holder_of_this_machine_is_replaced_at_once(storage, looks):
    with holders(storage, 1) as (holder,):
        go(holder)
        assert said(holder) == "held 1"
        holder.send_signal(signal.SIGKILL)  # and its parent does not even bury it
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)

        def found() -> dict[str, int]:
            """By now nothing more comes of the last one, so that nothing it wrote is in vain."""
            with pytest.raises(FencedError):
                check_token(storage, 1)
            assert [record.note for record in records(storage)] == [{"journalled": 7}, {}]
            return {"journalled": 9}

        with take(storage, who="the next", note=found) as mine:
            assert mine.token == 2
            mine.check()
        assert looks == [1]
    assert [record.note for record in records(storage)] == [{"journalled": 7}, {"journalled": 9}]


def test_a_sleeping_holder_is_replaced_after_a_while_and_learns_it_when_it_wakes(storage):
    with holders(storage, 1) as (holder,):
        go(holder)
        assert said(holder) == "held 1"
        time.sleep(2 * BEAT_SEC)
        holder.send_signal(signal.SIGSTOP)
        beats = [b"a beat may be on its way"]
        while len(beats) < 2 or beats[-1] != beats[-2]:
            time.sleep(1)
            beats.append(lease._last_beat(storage, 1))
        begun = time.monotonic()
        with take(storage, who="the next", note={}) as mine:
            assert time.monotonic() - begun > LEASE_SEC
            assert mine.token == 2
            with pytest.raises(FencedError, match="written by the next"):
                check_token(storage, 1)
            holder.send_signal(signal.SIGCONT)
            go(holder)
            assert said(holder).startswith("fenced")
            mine.check()


def test_a_lease_that_was_given_back_is_free_at_once(storage, looks):
    for token in (1, 2, 3):
        with take(storage, who="me", note={}) as mine:
            assert mine.token == token
    assert looks == [1, 2]
    with pytest.raises(FencedError):
        check_token(storage, 2)
    check_token(storage, 3)


def test_a_holder_on_another_machine_is_judged_by_its_beat_alone(storage, looks):
    hold_elsewhere(storage)
    begun = time.monotonic()
    with take(storage, who="me", note={}) as mine:
        assert mine.token == 3
    assert time.monotonic() - begun > LEASE_SEC
    assert len(looks) <= LEASE_SEC / lease.POLL_SEC + 2


def test_who_watches_and_slept_as_the_holder_did_condemns_nobody(storage, monkeypatch):
    """As on a machine that was suspended for an hour: after it the holder needs a moment, too."""
    hold_elsewhere(storage)
    now, slept = 0.0, 0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        slept += 1
        now += 3600 if slept == 1 else seconds
        if slept == 3:
            storage.write("lease/000002.beat", b"1")

    clock = SimpleNamespace(monotonic=lambda: now, time=time.time, sleep=sleep)
    monkeypatch.setattr(lease, "time", clock)
    with (
        pytest.raises(ConfigError, match="being written by me"),
        take(storage, who="another", note={}),
    ):
        pass


def test_a_holder_whose_storage_fails_for_a_while_goes_on(storage, monkeypatch, caplog):
    """Its beats are missed, and the log says so; nobody took over, so it still may write."""
    monkeypatch.setattr(lease, "LEASE_SEC", 60)
    with take(storage, who="me", note={}) as mine:
        write = type(storage).write

        def failing(self, name: str, data: bytes) -> None:
            raise StorageError("the disk is gone")

        monkeypatch.setattr(type(storage), "write", failing)
        deadline = time.monotonic() + DEADLINE_SEC
        while "could not be renewed: the disk is gone" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        monkeypatch.setattr(type(storage), "write", write)
        with (
            pytest.raises(ConfigError, match="being written by me"),
            take(storage, who="another", note={}),
        ):
            pass
        mine.check()

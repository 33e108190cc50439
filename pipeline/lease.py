"""One writer for a run: a lease with a number that only grows, and that every later writer raises.

lease/<token>.json   who took the lease, made by whoever is first; never changed, never deleted
lease/<token>.note   what the holder found before it wrote anything, and after the last holder was
                     fenced off: that one's late writes are told by it
lease/<token>.beat   what the holder writes every BEAT_SEC, and as its last word, "released"

A holder that died on this machine is replaced at once. Another one is watched with a clock of our
own (no two machines' clocks are compared) and replaced once its beat has stood still for
LEASE_SEC. It may only have been asleep; then its next `check` tells it that it was fenced off.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gan.config import ConfigError
from pipeline.processes import started
from pipeline.storage import Storage, StorageError

FOLDER = "lease"
LEASE_SEC = 20
BEAT_SEC = 3
POLL_SEC = 0.5
RELEASED = b"released"
Note = Mapping[str, Any]
Read = Callable[[str], bytes]
log = logging.getLogger(__name__)


class FencedError(Exception):
    """Another process writes now; this one must write nothing any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The process that took a lease."""

    who: str
    host: str
    pid: int
    place: str  # the machine since its start, and its room for pids; "" where that is unknown
    started: int  # when the process began, in ticks of that machine
    since_ms: int
    id: str  # no two records are alike

    @classmethod
    def this(cls, who: str) -> Owner:
        """This process, anew."""
        return cls(
            who=who,
            host=socket.gethostname(),
            pid=os.getpid(),
            place=_place(),
            started=started(os.getpid()),
            since_ms=int(time.time() * 1000),
            id=uuid.uuid4().hex,
        )

    @property
    def dead(self) -> bool:
        """Whether it is known to be over: it was a process of this machine."""
        return bool(self.place) and self.place == _place() and started(self.pid) != self.started

    def __str__(self) -> str:
        age = max(0, time.time() - self.since_ms / 1000)
        return f"{self.who} (host {self.host}, pid {self.pid}, for {age:.0f} s)"


@dataclass(frozen=True, slots=True)
class Record:
    """One lease that was taken, and what its taker noted; {} where it had nothing to note, or did
    not come to it: notes are made before anything is written.
    """

    token: int
    owner: Owner
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Lease:
    """The lease as its holder has it."""

    storage: Storage
    record: Record
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def token(self) -> int:
        """Its number; every later holder has a higher one."""
        return self.record.token

    def check(self) -> None:
        """Raises FencedError where another process has taken over."""
        check_token(self.storage, self.token)

    def _keep_beating(self) -> None:
        count = 0
        while not self._over.wait(BEAT_SEC):
            count += 1
            try:
                self.check()
                self.storage.write(_beat(self.token), str(count).encode())
            except FencedError:
                return
            except StorageError as error:
                log.warning("the lease could not be renewed: %s", error)


def check_token(storage: Storage, token: int) -> None:
    """Raises FencedError where a later lease than `token` was taken; every token follows on the
    one before.
    """
    if storage.exists(_file(token + 1)):
        newest = records(storage)[-1]
        raise FencedError(
            f"{storage.uri} is written by {newest.owner} now; this process was thought dead "
            f"and writes no more"
        )


def records(storage: Storage, *, read: Read | None = None) -> list[Record]:
    """All leases that were ever taken, the oldest first.

    `read` may remember what it read: no file that it is asked for is ever written again.
    """
    names = storage.names(FOLDER)
    return [_read(read or storage.read, name, names) for name in names if name.endswith(".json")]


@contextmanager
def take(storage: Storage, *, who: str, note: Note | Callable[[], Note]) -> Iterator[Lease]:
    """Makes this process the one writer of `storage` for the length of the block.

    `who` says what it is, for others' errors; `note` (or what it returns, once the last holder is
    fenced off) is kept beside the record. Raises ConfigError where somebody else is at work; that
    may take BEAT_SEC to see. Where the last holder does not move it takes LEASE_SEC.
    """
    while True:
        names = [name for name in storage.names(FOLDER) if name.endswith(".json")]
        last = _read(storage.read, names[-1]) if names else None
        if last is not None:
            _wait_for_the_end(storage, last)
        record = Record((last.token if last else 0) + 1, Owner.this(who))
        taken = json.dumps({"token": record.token, "owner": asdict(record.owner)}, indent=1)
        if storage.create(_file(record.token), taken.encode()):
            break
    lease = Lease(storage, record)
    beating = threading.Thread(target=lease._keep_beating, name="lease", daemon=True)
    beating.start()
    try:
        # Not before the lease was taken: what the last holder still writes in between would be
        # void, and its newest checkpoints with it.
        noted = note() if callable(note) else note
        if noted:
            storage.write(_note(record.token), json.dumps(dict(noted)).encode())
        yield lease
    finally:
        lease._over.set()
        beating.join()
        try:
            storage.write(_beat(record.token), RELEASED)
        except StorageError as error:
            log.warning("the lease could not be given back; it ends by itself: %s", error)


def _wait_for_the_end(storage: Storage, holder: Record) -> None:
    """Returns once the holder of the newest lease is gone. Raises ConfigError where it moves."""
    first = seen = _last_beat(storage, holder.token)
    still_sec, looked = 0.0, time.monotonic()
    while seen != RELEASED and not holder.owner.dead:
        if seen != first:
            raise ConfigError(
                [f"{storage.uri} is being written by {holder.owner}; wait for it, or stop it"]
            )
        if still_sec > LEASE_SEC:
            log.warning("%s has not moved for %g s and is replaced", holder.owner, LEASE_SEC)
            return
        time.sleep(POLL_SEC)
        seen = _last_beat(storage, holder.token)
        # Where this process slept, as on a machine that was suspended, the holder may have too.
        still_sec += min(time.monotonic() - looked, 2 * POLL_SEC)
        looked = time.monotonic()


def _last_beat(storage: Storage, token: int) -> bytes:
    try:
        return storage.read(_beat(token))
    except FileNotFoundError:
        return b""


def _read(read: Read, name: str, names: Collection[str] = ()) -> Record:
    """A record; with its note, where that is among `names`."""
    record = json.loads(read(name))
    token, owner = record["token"], Owner(**record["owner"])
    noted = _note(token) in names
    return Record(token, owner, json.loads(read(_note(token))) if noted else {})


def _file(token: int) -> str:
    return f"{FOLDER}/{token:06d}.json"


def _note(token: int) -> str:
    return f"{FOLDER}/{token:06d}.note"


def _beat(token: int) -> str:
    return f"{FOLDER}/{token:06d}.beat"


def _place() -> str:
    """This machine since its start, and the namespace that its process ids count in (a container
    has one of its own); "" where the system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""

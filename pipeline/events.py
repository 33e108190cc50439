"""What happened to a run and when: noted by each driver, and by the workers when they begin."""

from __future__ import annotations

import json
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

from pipeline.storage import Storage, StorageError

log = logging.getLogger(__name__)

FOLDER = "events"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    began: a command. attempt: workers are asked for. playing: they have taken the game up, at
    `nimg`. lost: one of them failed. regroup: others will take over. stopped, finished, failed:
    the end of the playing, as a command saw it.
    """

    kind: str
    time_ms: int
    facts: dict[str, Any]


class Events:
    """One driver's account. A note that storage does not take is lost; training is not."""

    def __init__(self, storage: Storage, token: int):
        self._storage, self._name = storage, f"{FOLDER}/{token:06d}.jsonl"
        try:
            self._texts = storage.read(self._name).decode().splitlines()
        except FileNotFoundError:
            self._texts = []
        except StorageError as error:
            log.warning("the run's events cannot be read: %s", error)
            self._texts = []

    def add(self, kind: str, **facts: float | str) -> None:
        """Notes that it happened now."""
        self._texts.append(_text(kind, facts))
        _write(self._storage, self._name, self._texts)


def note_playing(storage: Storage, *, token: int, nimg: int) -> None:
    """A worker's note that its game goes on at `nimg`, in a file of its own."""
    name = f"{FOLDER}/{token:06d}-{uuid.uuid4().hex[:8]}.jsonl"
    _write(storage, name, [_text("playing", {"nimg": nimg})])


def has_played(storage: Storage, *, token: int) -> bool:
    """Whether workers of this writer have taken the game up."""
    return any(name.startswith(f"{FOLDER}/{token:06d}-") for name in storage.names(FOLDER))


def events_of(storage: Storage) -> list[Event]:
    """All that was noted, in order of time."""
    found = []
    for name in storage.names(FOLDER):
        for text in storage.read(name).decode().splitlines():
            facts = json.loads(text)
            found.append(Event(facts.pop("kind"), facts.pop("time_ms"), facts))
    return sorted(found, key=lambda event: event.time_ms)


def _text(kind: str, facts: dict[str, float | str]) -> str:
    return json.dumps({"kind": kind, "time_ms": int(time.time() * 1000)} | facts)


def _write(storage: Storage, name: str, texts: list[str]) -> None:
    try:
        storage.write(name, ("\n".join(texts) + "\n").encode())
    except StorageError as error:
        log.warning("an event could not be noted: %s", error)

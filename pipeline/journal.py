"""A run's journal: one line a tick, each once, whoever wrote it and however often it is replayed.

journal/<first nimg>-<token>-<rollbacks>-<writer>.jsonl: under which lease it was written, and
after how many rollbacks, is in a segment's name, so that lines of a writer that was fenced off,
and of a game that was given up, can be told from those that count. No two writers, not even two
attempts under one lease, have a name in common: a write that arrives late replaces nobody else's.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.storage import Storage

JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One tick as it is tracked: metrics at `nimg`, at a fixed time, and a picture where one was
    drawn.
    """

    nimg: int
    time_ms: int
    seconds: float  # of playing
    metrics: dict[str, float]
    picture: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of the journal."""

    first_nimg: int
    token: int = 0
    rollbacks: int = 0
    writer: str = ""

    @property
    def name(self) -> str:
        """Its name on storage."""
        numbers = f"{self.first_nimg:012d}-{self.token:06d}-{self.rollbacks:03d}"
        return f"{JOURNAL}/{numbers}{self.writer and f'-{self.writer}'}.jsonl"

    @classmethod
    def of(cls, name: str) -> Segment:
        """The segment of this name."""
        first_nimg, token, rollbacks, *writer = PurePosixPath(name).stem.split("-")
        return cls(int(first_nimg), int(token), int(rollbacks), *writer)  # once without a writer


def lines(
    storage: Storage,
    *,
    after: int,
    counts: Callable[[int, int, int], bool],
    read: Callable[[Segment], bytes] | None = None,
) -> Iterator[JournalLine]:
    """The lines past nimg `after` that count, in order, each once.

    `counts(nimg, token, rollbacks)` says of a line whether it does; `read` may remember segments.
    """
    read = read or (lambda segment: storage.read(segment.name))
    segments = sorted(map(Segment.of, storage.names(JOURNAL)))
    begun: dict[Any, Segment] = {}  # of each writer, the last that begins by `after`
    for segment in segments:
        if segment.first_nimg <= after:
            begun[segment.token, segment.rollbacks, segment.writer] = segment
    found: dict[int, JournalLine] = {}
    for segment in segments:
        if segment.first_nimg <= after and segment not in begun.values():
            continue  # it ends before `after`
        for text in read(segment).decode().splitlines():
            line = JournalLine(**json.loads(text))
            if line.nimg > after and counts(line.nimg, segment.token, segment.rollbacks):
                found.setdefault(line.nimg, line)
    yield from (found[nimg] for nimg in sorted(found))


class JournalWriter:
    """Appends ticks to a journal whose last line is at `last`.

    Ticks that the journal already holds are passed over: a game replayed from a checkpoint ticks
    the same again.
    """

    def __init__(self, storage: Storage, *, last: int, token: int = 0, rollbacks: int = 0):
        self._storage, self._last = storage, last
        self._token, self._rollbacks = token, rollbacks
        self._writer = uuid.uuid4().hex[:8]
        self._texts: list[str] = []
        self._segment = Segment(0)

    def add(self, *given: JournalLine) -> None:
        """Publishes more ticks, given in order."""
        fresh = [line for line in given if line.nimg > self._last]
        if not fresh:
            return
        if not self._texts:
            self._segment = Segment(fresh[0].nimg, self._token, self._rollbacks, self._writer)
        self._texts += [json.dumps(asdict(line)) for line in fresh]
        self._storage.write(self._segment.name, ("\n".join(self._texts) + "\n").encode())
        self._last = fresh[-1].nimg

    def roll(self) -> None:
        """Begins a new segment, so that segments stay short."""
        self._texts = []

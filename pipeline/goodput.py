"""Goodput: of all seconds that a run's commands took, how many made the game that counts.

From the run's events and its journal. The time between two commands is not counted, nor what a
killed command did after its last sign of life.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import median

from pipeline.events import Event, events_of
from pipeline.journal import JournalLine
from pipeline.run import Run

WAYS = ("start-up", "checkpoints", "evaluation", "recovery", "replayed images", "other")


@dataclass(slots=True)
class Goodput:
    """Seconds of a run by what they went into."""

    useful_sec: float = 0.0  # playing rounds whose ticks count
    startup_sec: float = 0.0  # from a command's begin until the workers play
    checkpoints_sec: float = 0.0  # that rounds waited for
    evaluation_sec: float = 0.0
    recovery_sec: float = 0.0  # from a known failure, or a regroup, until the workers play again
    replayed_sec: float = 0.0  # rounds that were lost or rolled back, or played a second time
    other_sec: float = 0.0  # what none of them explains

    @property
    def all_sec(self) -> float:
        """All of them."""
        return sum(self._parts())

    @property
    def share(self) -> float:
        """Of all seconds those that were useful; 0 where there were none."""
        return self.useful_sec / self.all_sec if self.all_sec > 0 else 0.0

    def _parts(self) -> list[float]:
        return [getattr(self, field.name) for field in fields(self)]

    def metrics(self) -> dict[str, float]:
        """Under the names that MLflow shows: goodput/share and goodput/..._sec."""
        seconds = {f"goodput/{field.name}": getattr(self, field.name) for field in fields(self)}
        return {"goodput/share": self.share, "goodput/all_sec": self.all_sec} | seconds

    def __str__(self) -> str:
        if self.all_sec <= 0:
            return "goodput unknown"
        lost = [
            f"{sec / self.all_sec:.0%} {way}".replace("%", " %")
            for way, sec in zip(WAYS, self._parts()[1:], strict=True)
            if sec >= 0.005 * self.all_sec
        ]
        said = f"goodput {self.share:.0%}".replace("%", " %")
        return f"{said} of {self.all_sec:.0f} s" + (f": {', '.join(lost)}" if lost else "")


def goodput(run: Run) -> Goodput:
    """Where the seconds of all commands on this run went so far."""
    return account(events_of(run.storage), list(run.journal()))


def account(events: Sequence[Event], lines: Sequence[JournalLine]) -> Goodput:
    """The same of events and of the ticks that count, both in order of time."""
    ledger = _Ledger(events, lines)
    marks = [(event.time_ms, event) for event in events]
    marks += [(line.time_ms, line) for line in lines]
    for _, mark in sorted(marks, key=lambda pair: (pair[0], isinstance(pair[1], Event))):
        if isinstance(mark, Event):
            ledger.happened(mark)
        else:
            ledger.ticked(mark)
    found = ledger.found
    found.other_sec = max(0.0, found.other_sec)  # two clocks may disagree by a little
    return found


class _Ledger:
    """Walks through time from mark to mark and books each stretch between two of them."""

    def __init__(self, events: Sequence[Event], lines: Sequence[JournalLine]):
        self.found = Goodput()
        self._resumptions = [e for e in events if e.kind in ("playing", "stopped", "finished")]
        self._sec_per_img = _pace(lines)
        self._at: int | None = None  # up to where time is booked; None between commands
        self._playing = self._played = self._replaying = False
        self._nimg = 0  # of the last tick that counts

    def _pass(self, time_ms: int) -> float:
        """The seconds since the mark before."""
        assert self._at is not None
        seconds, self._at = (time_ms - self._at) / 1000, time_ms
        return seconds

    def _wait(self, seconds: float) -> None:
        if self._played:
            self.found.recovery_sec += seconds
        else:
            self.found.startup_sec += seconds

    def happened(self, event: Event) -> None:
        """Books the time up to an event."""
        if event.kind == "began":
            self._at, self._playing, self._played = event.time_ms, False, False
            return
        if self._at is None:
            return
        if event.kind == "regroup":  # the workers play on until they have stopped
            return
        seconds = self._pass(event.time_ms)
        if not self._playing:
            self._wait(seconds)
        else:
            self._leave(event, seconds)
        if event.kind == "playing":
            self._playing = self._played = True
            self._replaying = event.facts.get("nimg", 0) < self._nimg
        elif event.kind in ("stopped", "finished", "failed"):
            self._at = None
        else:
            self._playing = False

    def _leave(self, event: Event, seconds: float) -> None:
        """Books what came after the last tick: what a checkpoint saved of it was useful."""
        later = [e for e in self._resumptions if e.time_ms >= event.time_ms]
        saved_nimg = later[0].facts.get("nimg", 0) if later else 0
        useful = min(seconds, max(0.0, saved_nimg - self._nimg) * self._sec_per_img)
        self.found.useful_sec += useful
        if event.kind in ("lost", "playing"):
            self.found.replayed_sec += seconds - useful
        elif event.kind == "attempt":
            self.found.recovery_sec += seconds - useful
        else:
            self.found.other_sec += seconds - useful

    def ticked(self, line: JournalLine) -> None:
        """Books the time up to a tick that counts."""
        self._nimg = line.nimg
        if self._at is None:
            return
        outside = self._pass(line.time_ms) - line.seconds
        evaluation = min(line.metrics.get("host/evaluate_sec", 0.0), max(0.0, outside))
        outside -= evaluation
        checkpoints = line.metrics.get("host/checkpoint_sec", 0.0)
        within = checkpoints - min(checkpoints, max(0.0, outside))  # those by the clock
        outside -= checkpoints - within
        self.found.evaluation_sec += evaluation
        self.found.checkpoints_sec += checkpoints
        self.found.useful_sec += line.seconds - within
        if not self._playing:  # their note was lost
            self._wait(outside)
            self._playing = self._played = True
        elif self._replaying and outside > 0:
            self.found.replayed_sec += outside
        else:
            self.found.other_sec += outside
        self._replaying = False


def _pace(lines: Iterable[JournalLine]) -> float:
    speeds = [line.metrics.get("speed/img_per_sec", 0.0) for line in lines]
    known = [speed for speed in speeds if speed > 0]
    return 1 / median(known) if known else 0.0

"""How the runs below a storage stand: who is at work, who stopped, what is left to do."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from gan.config import ConfigError
from gan.health import CODES
from pipeline.events import events_of
from pipeline.lease import BEAT_SEC, FOLDER, RELEASED, Owner, Record, records
from pipeline.run import RECORD, Run, now_ms
from pipeline.storage import Storage

State = Literal[
    "running", "stopped", "crashed", "complete", "undelivered", "diverged", "failed", "unreadable"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStanding:
    """One run, as a person asks after it."""

    name: str
    state: State
    nimg: int = 0
    total_nimg: int = 0
    tick_age_sec: float | None = None  # since the last tick; None before the first
    health: str = ""  # the last verdict, if there is one
    best: dict[str, float] = field(default_factory=dict)  # scores of the best snapshot
    model: str = ""
    registered: bool = False
    damage: str = ""  # why it cannot be read


def runs_in(storage: Storage) -> list[RunStanding]:
    """Every run directly below `storage`, by name.

    Takes a few seconds where another machine seems to be at work on one: it is watched whether it
    moves.
    """
    names = [n.split("/")[0] for n in storage.names() if n.count("/") == 1 and n.endswith(RECORD)]
    found: dict[str, Run | str] = {}
    for name in names:
        try:
            found[name] = Run.at(storage.below(name))
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            found[name] = str(error)
    moving = _moving(run for run in found.values() if isinstance(run, Run))
    return [
        _standing(name, run, moving=name in moving)
        if isinstance(run, Run)
        else RunStanding(name=name, state="unreadable", damage=run)
        for name, run in sorted(found.items())
    ]


def _standing(name: str, run: Run, *, moving: bool) -> RunStanding:
    lines = list(run.journal())
    last, best = (lines[-1] if lines else None), run.best()
    code = last.metrics.get("health/verdict") if last else None
    result = run.result
    return RunStanding(
        name=name,
        state=_state(run, moving=moving),
        nimg=last.nimg if last else 0,
        total_nimg=run.experiment.turns.total_nimg,
        tick_age_sec=(now_ms() - last.time_ms) / 1000 if last else None,
        health=next((state for state, number in CODES.items() if number == code), ""),
        best=best.card.scores if best else {},
        model=run.experiment.tracking.model or run.experiment.name,
        registered=bool(result and result["registered"]),
    )


def _state(run: Run, *, moving: bool) -> State:
    if moving:
        return "running"
    if run.result is not None:
        return "complete" if run.result.get("delivered", True) else "undelivered"
    events = events_of(run.storage)
    if events and events[-1].kind == "failed":
        return "diverged" if events[-1].facts.get("diverged") else "failed"
    holder = _holder(run)
    if holder is not None and _beat(run, holder) != RELEASED:
        return "crashed"
    return "stopped"


def _moving(runs: Iterable[Run]) -> set[str]:
    """The names of those that somebody is at work on."""
    here, found, watched = Owner.this("").place, set(), {}
    for run in runs:
        holder = _holder(run)
        if holder is None or holder.owner.dead or _beat(run, holder) == RELEASED:
            continue
        if here and holder.owner.place == here:
            found.add(run.name)
        else:
            watched[run.name] = (run, holder, _beat(run, holder))
    if watched:
        time.sleep(2 * BEAT_SEC)
    found |= {name for name, (run, who, was) in watched.items() if _beat(run, who) != was}
    return found


def _holder(run: Run) -> Record | None:
    return next(reversed(records(run.storage)), None)


def _beat(run: Run, holder: Record) -> bytes:
    try:
        return run.storage.read(f"{FOLDER}/{holder.token:06d}.beat")
    except FileNotFoundError:
        return b""

"""Which fault strikes which run, and when: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

EARLIEST, LATEST = 0.08, 0.88  # shares of a run's images between which faults strike


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault as the schedule sees it: on which stage it is played, how often compared to
    the others, and how many share a run.
    """

    stage: str
    weight: int = 2
    per_run: int = 5


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: it strikes once the run has journalled the share `at` of its images; `dice` seeds
    what it chooses by itself.
    """

    kind: str
    at: float
    dice: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One run and the faults that strike it, in order."""

    number: int
    stage: str
    faults: tuple[Planned, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return f"{self.stage}-{self.number:03d}"


def schedule(seed: int, count: int, kinds: Mapping[str, Kind]) -> tuple[Plan, ...]:
    """`count` faults, every kind as often as its weight says to one fault, dealt to runs.

    Raises ValueError where there is no kind to choose from.
    """
    if not kinds:
        raise ValueError("a schedule needs at least one kind of fault")
    dice = random.Random(seed)
    struck = _as_often_as_weighted(count, kinds, dice)
    plans: list[Plan] = []
    groups = sorted({(kind.stage, kind.per_run) for kind in kinds.values()})
    for stage, per_run in groups:
        here = [k for k in struck if (kinds[k].stage, kinds[k].per_run) == (stage, per_run)]
        for run in _dealt(here, per_run):
            plans.append(Plan(len(plans), stage, tuple(_moments(run, dice))))
    return tuple(plans)


def exponential(
    seed: int, *, mean_sec: float, within_sec: float, kinds: list[str]
) -> list[tuple[float, str, int]]:
    """Faults of a Poisson process: (seconds from the start, kind, dice)."""
    dice, now, struck = random.Random(seed), 0.0, []
    while (now := now + dice.expovariate(1 / mean_sec)) < within_sec:
        struck.append((now, dice.choice(kinds), dice.randrange(2**31)))
    return struck


def _as_often_as_weighted(count: int, kinds: Mapping[str, Kind], dice: random.Random) -> list[str]:
    """Rounds of a shuffled bag, so that the counts of two kinds never drift apart."""
    bag = [name for name, kind in sorted(kinds.items()) for _ in range(kind.weight)]
    struck: list[str] = []
    while len(struck) < count:
        dice.shuffle(bag)
        struck += bag
    return struck[:count]


def _dealt(struck: list[str], per_run: int) -> Iterator[list[str]]:
    for start in range(0, len(struck), per_run):
        yield struck[start : start + per_run]


def _moments(run: list[str], dice: random.Random) -> Iterator[Planned]:
    """One fault in each of as many equal stretches of the run, anywhere in its own."""
    stretch = (LATEST - EARLIEST) / len(run)
    for number, kind in enumerate(run):
        at = EARLIEST + (number + dice.random()) * stretch
        yield Planned(kind, round(at, 4), dice.randrange(2**31))

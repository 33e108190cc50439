"""When is a trial cut? Pure functions of the trials' readings; ASHA and the median rule, robust.

Both rules compare what is robust (the best so far of smoothed readings, so that one lucky or
unlucky evaluation decides nothing), cut only where the difference is larger than the noise, and
never let a diverged trial count as good or bring another one down.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.ledger import Reading
from pipeline.search_config import Objective, SearchConfig

SENTINEL = 1e9  # a reading from here on, or one that is no number, says that the trial diverged
SMOOTHED = 3  # readings that are averaged
MARGIN = 2.0  # combined standard errors by which a trial must be worse before it is cut
MIN_OTHERS = 5  # trials that the median rule needs beside the one that is judged
FRACTIONS = {2: "half", 3: "third", 4: "quarter", 5: "fifth"}

Curves = Mapping[int, Sequence[Reading]]  # by the trial's number, each in the order of nimg


@dataclass(frozen=True, slots=True)
class Standing:
    """What a trial has shown by `nimg`: its best smoothed value, and the error of that value."""

    nimg: int
    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.error:.2g}"


class Rule(Protocol):
    """Decides about a trial from the curves of all trials, its own included."""

    def verdict(
        self, number: int, curves: Curves, *, diverged: Collection[int] = ()
    ) -> str | None:
        """Why trial `number` is to be cut now, in words for people; None where it may go on.

        `diverged` are the trials that ended so; their curves hold what they read before.
        """
        ...


def robust(readings: Sequence[Reading], objective: Objective) -> list[Standing]:
    """At each reading the best so far of the mean of the last three values (fewer at the start).

    The error is the mean of the three errors, not that over sqrt(3): a trial is always judged at
    the same latents, so the errors of its readings are nearly the same error. Ends before the
    first reading that says that the trial diverged.
    """
    standings: list[Standing] = []
    for index, reading in enumerate(readings):
        if not _is_finite(reading, objective):
            break
        last = readings[max(0, index + 1 - SMOOTHED) : index + 1]
        now = Standing(
            reading.nimg,
            statistics.fmean(r.values[objective] for r in last),
            statistics.fmean(r.errors[objective] for r in last),
        )
        best = standings[-1] if standings and standings[-1].value <= now.value else now
        standings.append(Standing(reading.nimg, best.value, best.error))
    return standings


@dataclass(frozen=True, slots=True)
class NoStopping:
    """Every trial is played to its end."""

    def verdict(
        self, number: int, curves: Curves, *, diverged: Collection[int] = ()
    ) -> str | None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asha:
    """Asynchronous successive halving, ASHA (Li et al. 2020, arXiv 1810.05934, algorithm 2).

    A trial is judged once at each rung, at its first reading there, and goes on where it is among
    the best 1/reduction of those that came so far. Two things differ from the paper, both in
    favour of trials: a trial is cut only where it is worse by more than the noise, and nothing is
    cut before `reduction` trials with numbers are at the rung. So the first ones to arrive pass.

    Nothing here saves a slow trial that is far behind at a rung and would have won: only a longer
    warm-up does.
    """

    rungs: tuple[int, ...]  # images, ascending
    reduction: int
    objective: Objective

    @classmethod
    def over(
        cls, total_nimg: int, *, warm_up: float, reduction: int, objective: Objective
    ) -> Asha:
        """Rungs at warm_up, warm_up * reduction, ... of a trial's images, below its end.

        Without a warm-up the first rung is at the end over reduction^3, so that there are three.
        """
        share = warm_up if warm_up > 0 else 1 / reduction**3
        rungs: list[int] = []
        while share < 1:
            rungs.append(max(1, round(share * total_nimg)))
            share *= reduction
        return cls(rungs=tuple(rungs), reduction=reduction, objective=objective)

    def verdict(
        self, number: int, curves: Curves, *, diverged: Collection[int] = ()
    ) -> str | None:
        shown = _Shown(curves, self.objective, diverged)
        if shown.is_diverged(number):
            return shown.divergence(number)
        own = shown.last(number)
        reached = [rung for rung in self.rungs if own is not None and own.nimg >= rung]
        if own is None or not reached or own != shown.at(number, rung := reached[-1]):
            return None
        at_rung = [s for other in curves if (s := shown.at(other, rung)) is not None]
        if len(at_rung) < self.reduction:
            return None
        count = len(at_rung) + sum(
            shown.fell_at(other, rung, self.rungs) for other in {*curves, *diverged}
        )
        cutoff = sorted(at_rung, key=lambda s: s.value)[
            min(max(1, count // self.reduction), len(at_rung)) - 1
        ]
        if not _is_worse(own, cutoff):
            return None
        share = FRACTIONS.get(self.reduction, f"1/{self.reduction}")
        return (
            f"{own} at {_kimg(own.nimg)} is more than {MARGIN:g} errors worse than the "
            f"{cutoff.value:.4g} +- {cutoff.error:.2g} that the best {share} of {count} trials "
            f"reach at {_kimg(rung)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Median:
    """The median rule of Google Vizier (Golovin et al. 2017, section 3.2.2), past the noise.

    After the warm-up a trial is cut whose best so far is worse than the median of the others'
    running means up to the same number of images. At least five others must have come so far.
    """

    warm_up_nimg: int
    objective: Objective

    def verdict(
        self, number: int, curves: Curves, *, diverged: Collection[int] = ()
    ) -> str | None:
        shown = _Shown(curves, self.objective, diverged)
        if shown.is_diverged(number):
            return shown.divergence(number)
        own = shown.last(number)
        if own is None or own.nimg < self.warm_up_nimg:
            return None
        fallen = 0
        means: list[Standing] = []
        for other in {*curves, *diverged} - {number}:
            mean = shown.running_mean(other, own.nimg)
            if mean is not None:
                means.append(mean)
            elif shown.is_diverged(other):
                fallen += 1
        if len(means) < MIN_OTHERS:
            return None
        middle = _median(means, fallen)
        if middle is None or not _is_worse(own, middle):
            return None
        return (
            f"{own} at {_kimg(own.nimg)} is more than {MARGIN:g} errors worse than the {middle} "
            f"that is the median of {len(means) + fallen} other trials' means up to there"
        )


def rule_for(config: SearchConfig, *, total_nimg: int) -> Rule:
    """The rule that a search asks for; `total_nimg` are the images of a whole trial.

    With 'pbt' nothing is cut: the population's own selection replaces what is bad.
    """
    objective = config.objectives[0]
    if config.scheduler == "asha":
        return Asha.over(
            total_nimg, warm_up=config.warm_up, reduction=config.reduction, objective=objective
        )
    if config.scheduler == "median":
        return Median(warm_up_nimg=round(config.warm_up * total_nimg), objective=objective)
    return NoStopping()


class _Shown:
    """All curves as far as they are finite, and who diverged."""

    def __init__(self, curves: Curves, objective: Objective, diverged: Collection[int]):
        self._curves, self._objective = curves, objective
        self._standings = {n: robust(readings, objective) for n, readings in curves.items()}
        self._diverged = set(diverged) | {
            n for n, readings in curves.items() if len(self._standings[n]) < len(readings)
        }

    def is_diverged(self, number: int) -> bool:
        return number in self._diverged

    def divergence(self, number: int) -> str:
        last = self.last(number)
        since = "from the start" if last is None else f"since {_kimg(last.nimg)}"
        return f"it diverged: no finite {self._objective} {since}"

    def last(self, number: int) -> Standing | None:
        standings = self._standings.get(number)
        return standings[-1] if standings else None

    def at(self, number: int, rung: int) -> Standing | None:
        """The standing at the first reading at or past a rung; None where there is none that
        counts: a diverged trial is last at its rungs, however good it looked before.
        """
        if number in self._diverged:
            return None
        return next((s for s in self._standings[number] if s.nimg >= rung), None)

    def fell_at(self, number: int, rung: int, rungs: Sequence[int]) -> bool:
        """Whether a diverged trial counts at a rung: those it came to, and the one ahead of it."""
        if number not in self._diverged:
            return False
        last = self.last(number)
        ahead = next((r for r in rungs if last is None or r > last.nimg), rungs[-1])
        return rung <= ahead

    def running_mean(self, number: int, nimg: int) -> Standing | None:
        """The mean of all values up to `nimg`; None where it diverged or came less far."""
        last = self.last(number)
        if last is None or last.nimg < nimg or number in self._diverged:
            return None
        taken = [r for r in self._curves[number] if r.nimg <= nimg]
        if not taken:
            return None
        return Standing(
            nimg,
            statistics.fmean(r.values[self._objective] for r in taken),
            statistics.fmean(r.errors[self._objective] for r in taken),
        )


def _median(standings: Sequence[Standing], fallen: int) -> Standing | None:
    """The median, `fallen` more being infinitely bad; None where it is among those."""
    ordered = sorted(standings, key=lambda s: s.value)
    count = len(ordered) + fallen
    low, high = (count - 1) // 2, count // 2
    if high >= len(ordered):
        return None
    a, b = ordered[low], ordered[high]
    return Standing(a.nimg, (a.value + b.value) / 2, (a.error + b.error) / 2)


def _is_worse(one: Standing, other: Standing) -> bool:
    """Whether a standing is worse than another by more than the noise of both."""
    return one.value - other.value > MARGIN * math.hypot(one.error, other.error)


def _is_finite(reading: Reading, objective: Objective) -> bool:
    value, error = reading.values.get(objective, math.nan), reading.errors.get(objective, math.nan)
    return math.isfinite(value) and value < SENTINEL and math.isfinite(error)


def _kimg(nimg: int) -> str:
    return f"{nimg / 1000:.4g} kimg"

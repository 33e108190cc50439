"""What the page of a search shows, as plain data, and the scores, axes and words drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.experiment import Experiment
from pipeline.ledger import Reading, Trial, front_of
from pipeline.search_config import SearchConfig
from pipeline.space import Dimension

OBJECTIVES = {"fd": "Fréchet distance", "kid": "KID", "diversity": "diversity lost"}
LOGARITHMIC = (
    "fd",
    "kid",
)  # distances of GANs span decades; the loss of diversity is a log already
APART = 2.0  # combined standard errors that two scores must differ by, or they are tied
OWN = "the file's own"  # the origin of the trial that the others are compared with
DIVERGED = 1e9  # a reading from here on is no distance, but says that the trial diverged
SCORED = ("running", "complete", "stopped")  # what diverged or failed has no score
MOST_TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A finalist: its best generator, judged again at latents that chose nothing."""

    number: int  # of the trial
    values: tuple[float, ...]  # of the first objective, one for each set of latents
    mean: float
    error: float  # standard error of the mean
    tied: bool  # with the best


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Everything that the page of a search is drawn from, at any time during or after it."""

    name: str
    config: SearchConfig
    base: Experiment  # the file's own settings
    trials: Sequence[Trial]  # by number
    dimensions: Sequence[Dimension]
    noise: Mapping[str, float] = field(default_factory=dict)  # an evaluation's, by objective
    finalists: Sequence[Judged] = ()  # best first
    best: int | None = None  # the trial that was named best; None as long as none was
    samples: Mapping[int, bytes] = field(
        default_factory=dict
    )  # trial: PNG, all at the same latents
    saved_device_sec: float = 0.0  # that the stopped trials would have taken to their ends
    wall_sec: float = 0.0
    best_toml: str = ""  # the best experiment, for `forger train`
    mlflow: str = ""  # where the runs are tracked

    @cached_property
    def by_number(self) -> dict[int, Trial]:
        """Every trial by its number."""
        return {trial.number: trial for trial in self.trials}

    @property
    def objective(self) -> str:
        """The first objective: what 'best' means."""
        return self.config.objectives[0]

    @property
    def own(self) -> Trial | None:
        """The trial of the file's own settings: the first one, unless the search has none."""
        first = self.by_number.get(0)
        return first if first is not None and first.origin == OWN else None

    @property
    def leader(self) -> Trial | None:
        """The trial named best; as long as none is, the one that leads."""
        if self.best is not None:
            return self.by_number.get(self.best)
        return next(iter(self.ranked), None)

    @cached_property
    def ranked(self) -> list[Trial]:
        """Every trial with a score, best first; the earlier one of equals."""
        found = [(s.value, t.number, t) for t in self.trials if (s := score(t, self.objective))]
        return [trial for _, _, trial in sorted(found, key=lambda each: each[:2])]

    def floor(self, objective: str) -> float:
        """The least value that a logarithm is taken of: the noise of one evaluation.

        Bias-corrected distances near nought can be negative; below the noise they all are alike.
        """
        if self.noise.get(objective, 0.0) > 0:
            return self.noise[objective]
        return min((v for v in self._read(objective) if v > 0), default=1e-9)

    def scale(self, objective: str) -> Axis:
        """The axis of all readings of an objective."""
        return scale_of(objective, self._read(objective), self.floor(objective))

    def score_scale(self, objective: str) -> Axis:
        """The axis of the trials' scores, which is also that of their colours."""
        found = [s.value for trial in self.trials if (s := score(trial, objective))]
        return scale_of(objective, found, self.floor(objective))

    def axis(self, dimension: Dimension) -> Axis:
        """The axis of a setting that is drawn; as wide as what was drawn and tried."""
        return axis_of(dimension, [t.point[dimension.name] for t in self.trials
                                   if dimension.name in t.point])  # fmt: skip

    def ancestry(self, trial: Trial) -> list[Trial]:
        """A trial and those whose weights it goes back to, the oldest first."""
        line = [trial]
        while line[0].parent is not None and line[0].parent in self.by_number:
            line.insert(0, self.by_number[line[0].parent])
        return line

    def readings(self, trial: Trial) -> list[Reading]:
        """A trial's readings of the first objective that are distances."""
        return [reading for reading in trial.readings if _is_distance(reading, self.objective)]

    def _read(self, objective: str) -> list[float]:
        return [
            reading.values[objective]
            for trial in self.trials
            for reading in trial.readings
            if _is_distance(reading, objective)
        ]


@dataclass(frozen=True, slots=True)
class Score:
    """A trial's best reading of one objective; smaller is better."""

    value: float
    error: float  # standard error of that one evaluation
    nimg: int


@dataclass(frozen=True, slots=True)
class Axis:
    """Where values lie on a drawn axis, from 0 to 1; options lie in the middles of equal cells."""

    name: str
    log: bool
    low: float
    high: float
    options: tuple[Any, ...] = ()

    def at(self, value: Any) -> float:
        """The position of a value; what lies outside is drawn at the end."""
        if self.options:
            return (self.options.index(value) + 0.5) / len(self.options)
        if self.log:
            if value <= self.low:
                return 0.0
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of a few round values."""
        if self.options:
            return [(self.at(option), str(option)) for option in self.options]
        values = log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)
        return [(self.at(value), short(value)) for value in values]


def axis_of(dimension: Dimension, values: Sequence[Any]) -> Axis:
    """The axis of a dimension on which these values lie too, whether it could draw them or not."""
    if dimension.kind == "choice":
        options = list(dimension.options)
        options += [v for n, v in enumerate(values) if v not in options and v not in values[:n]]
        return Axis(dimension.name, False, 0.0, 1.0, tuple(options))
    log = dimension.kind == "loguniform"
    known = [value for value in values if not log or value > 0]
    low, high = min([dimension.low, *known]), max([dimension.high, *known])
    return Axis(dimension.name, log, *_widened(low, high))


def scale_of(objective: str, values: Sequence[float], floor: float) -> Axis:
    """The axis of these values: logarithmic where distances span a factor of five."""
    name = OBJECTIVES[objective]
    if not values:
        return Axis(name, False, 0.0, 1.0)
    low, high = max(min(values), floor), max(values)
    if objective in LOGARITHMIC and high > 5 * low:
        return Axis(name, True, _rounded(low), 1 / _rounded(1 / high))
    return Axis(name, False, *_widened(min(values), high))


def _widened(low: float, high: float) -> tuple[float, float]:
    return (
        (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
    )


def _rounded(value: float) -> float:
    """The largest of 1, 2 and 5 times the powers of ten that is not above a value."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(m for m in (1, 2, 5) if m * power <= value * (1 + 1e-9))


def _is_distance(reading: Reading, objective: str) -> bool:
    value = reading.values.get(objective, math.nan)
    return math.isfinite(value) and value < DIVERGED


def score(trial: Trial, objective: str, *, by: str | None = None) -> Score | None:
    """What a trial is ranked by: an objective at its best reading, whose snapshot is kept.

    `by` is the objective that says which reading is best, `objective` itself where left out. None
    where the trial was not judged yet, diverged or failed.
    """
    best: Reading | None = trial.best(by or objective)
    if best is None or trial.state not in SCORED or not _is_distance(best, objective):
        return None
    return Score(best.values[objective], best.errors.get(objective, 0.0), best.nimg)


def front(shown: Shown) -> list[Trial]:
    """The trials that no other one beats in both objectives, by the first."""
    kept = {trial.number for trial in front_of(shown.ranked, shown.config.objectives)}
    return [trial for trial in shown.ranked if trial.number in kept]


def ticks(low: float, high: float) -> list[float]:
    """Round values from `low` to `high`, MOST_TICKS at most."""
    rough = (high - low) / (MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first
    return [float(f"{(first + n) * step:.12g}") for n in range(count + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from `low` to `high`; fewer where that is too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{m}e{p}") for p in powers for m in mantissas]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) <= MOST_TICKS:
            return found if len(found) > 1 else [low, high]
    return found[:: -(-len(found) // MOST_TICKS)]


def short(value: Any) -> str:
    """A value in as few characters as tell it: 0.00213, 2e-05, relativistic."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plus_minus(value: float, error: float) -> str:
    """12.3 ± 0.4: the error to two digits, the value no finer than that."""
    if not 0 < error < math.inf:
        return f"{value:.3g}"
    decimals = min(max(1 - math.floor(math.log10(error)), 0), 9)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def images(count: float) -> str:
    """A number of images: 800, 19.2 thousand, 1.92 million."""
    for size, word in ((1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.4g} {word}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """A time: 41 s, 12.3 min, 2.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def trials_named(numbers: Iterable[int]) -> str:
    """'trial 3', 'trials 3 and 5', 'trials 3, 5 and 8'."""
    texts = [str(number) for number in numbers]
    if len(texts) == 1:
        return f"trial {texts[0]}"
    return f"trials {', '.join(texts[:-1])} and {texts[-1]}"

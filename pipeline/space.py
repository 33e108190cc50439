"""The search space: which settings of an experiment are drawn, and from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.experiment import Experiment

Kind = Literal["uniform", "loguniform", "int", "choice"]
Point = Mapping[str, Any]  # what was drawn, by the dimension's name; without those that are out of play


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One value that is drawn for a trial."""

    key: str  # the setting
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    options: tuple[Any, ...] = ()
    times: str | None = None  # the setting is this other one times what is drawn
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # in play where these have one of these values

    @property
    def name(self) -> str:
        """What tables and the searchers call it: the setting, or 'setting / other' for a ratio."""
        return self.key if self.times is None else f"{self.key} / {self.times}"

    def at(self, unit: float) -> Any:
        """The value at a quantile in [0, 1): ranges end at `high`, 'int' and 'choice' have cells
        of equal width.
        """
        raise NotImplementedError

    def unit(self, value: Any) -> float:
        """The quantile of a value, `at`'s inverse; the middle of its cell for 'int' and 'choice'.

        Raises ValueError where the value cannot be drawn.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Space:
    """All dimensions of a search, and the settings that follow from others."""

    dimensions: tuple[Dimension, ...]
    same: tuple[tuple[str, str], ...] = ()  # (setting, the other one whose value it takes)

    @classmethod
    def of(cls, spec: Mapping[str, Any], base: Experiment) -> Space:
        """From the `[search.space]` table. Raises one ConfigError with every mistake in it."""
        raise NotImplementedError

    def point(self, base: Experiment, units: Sequence[float]) -> dict[str, Any]:
        """The point at these quantiles, one for each dimension; those out of play are left out."""
        raise NotImplementedError

    def settings(self, base: Experiment, point: Point) -> dict[str, Any]:
        """Every setting that a point decides, by its dotted name, ratios and links resolved."""
        raise NotImplementedError

    def experiment(self, base: Experiment, point: Point) -> Experiment:
        """The base with a point's settings. Raises ConfigError where they break a rule."""
        raise NotImplementedError

    def point_of(self, experiment: Experiment) -> dict[str, Any]:
        """The point that an experiment is, as far as its values could be drawn here."""
        raise NotImplementedError

    def check(self, base: Experiment) -> None:
        """Raises one ConfigError naming every setting whose values would be refused in a trial."""
        raise NotImplementedError

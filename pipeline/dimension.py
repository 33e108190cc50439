"""One value that a search draws: from what, its quantiles, and what it refers to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, Literal

from pipeline.settings import get

Kind = Literal["uniform", "loguniform", "int", "choice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """One value that is drawn for a trial."""

    key: str  # the setting
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    options: tuple[Any, ...] = ()
    times: str | None = None  # the setting is this other one times what is drawn
    when: tuple[
        tuple[str, tuple[Any, ...]], ...
    ] = ()  # in play where these have one of these values

    @property
    def name(self) -> str:
        """What tables and the searchers call it: the setting, or 'setting / other' for a ratio."""
        return self.key if self.times is None else f"{self.key} / {self.times}"

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values at which rules are tried: both ends of a range, every option of a choice."""
        return self.options if self.kind == "choice" else (self.at(0), self.at(1))

    @property
    def references(self) -> tuple[str, ...]:
        """The settings that must be known before this one."""
        return (*((self.times,) if self.times else ()), *(key for key, _ in self.when))

    def at(self, unit: float) -> Any:
        """The value at a quantile in [0, 1): ranges end at `high`, 'int' and 'choice' have cells
        of equal width.
        """
        assert 0 <= unit <= 1, unit
        if self.kind == "choice":
            return self.options[self._cell(unit, len(self.options))]
        if self.kind == "int":
            return int(self.low) + self._cell(unit, int(self.high) - int(self.low) + 1)
        if self.kind == "loguniform":
            value = self.low ** (1 - unit) * self.high**unit
        else:
            value = self.low * (1 - unit) + self.high * unit
        return float(min(max(value, self.low), self.high))

    def unit(self, value: Any) -> float:
        """The quantile of a value, `at`'s inverse; the middle of its cell for 'int' and 'choice'.

        Raises ValueError where the value cannot be drawn.
        """
        if self.kind == "choice":
            for i, option in enumerate(self.options):
                if equal(option, value):
                    return (i + 0.5) / len(self.options)
            raise ValueError(f"{self.name} must be one of {list(self.options)}, got {value!r}")
        if not is_number(value) or not self.low <= value <= self.high:
            raise ValueError(
                f"{self.name} must be between {self.low} and {self.high}, got {value!r}"
            )
        if self.kind == "int":
            if value != int(value):
                raise ValueError(f"{self.name} must be a whole number, got {value!r}")
            low, high = int(self.low), int(self.high)
            return (int(value) - low + 0.5) / (high - low + 1)
        if self.kind == "loguniform":
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def in_play(self, values: Mapping[str, Any]) -> bool:
        """Whether it is drawn where the settings have these nested plain values."""
        return all(
            any(equal(get(values, key), wanted) for wanted in allowed)
            for key, allowed in self.when
        )

    @staticmethod
    def _cell(unit: float, cells: int) -> int:
        return min(int(unit * cells), cells - 1)


def is_number(value: Any) -> bool:
    """Whether a plain value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(one: Any, other: Any) -> bool:
    """Whether two plain values are the same; to Python True is 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def references(
    dimensions: Iterable[Dimension], same: Iterable[tuple[str, str]]
) -> dict[str, tuple[str, ...]]:
    """For each setting of a space those that must be known before it."""
    return {d.key: d.references for d in dimensions} | {key: (other,) for key, other in same}


def in_order(dimensions: Sequence[Dimension], same: Sequence[tuple[str, str]]) -> list[str]:
    """The settings of a space, each after those that it refers to. Raises CycleError."""
    needs = references(dimensions, same)
    graph = {
        key: [one for one in needs if any(related(one, other) for other in others)]
        for key, others in needs.items()
    }
    return list(TopologicalSorter(graph).static_order())


def related(one: str, other: str) -> bool:
    """Whether two names are the same setting, or one is a part of the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")

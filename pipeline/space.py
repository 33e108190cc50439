"""The search space: which settings of an experiment are drawn, and from what."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gan.config import ConfigError
from pipeline.bounds import broken_rules
from pipeline.dimension import Dimension, Kind, equal, in_order, is_number
from pipeline.experiment import Experiment
from pipeline.settings import get, parsed, put
from pipeline.space_file import EXAMPLE, read_space
from pipeline.validator import experiment_from_dict

__all__ = ["Dimension", "Kind", "Point", "Space"]

Point = Mapping[
    str, Any
]  # what was drawn, by the dimension's name; without those that are out of play
MISSING = object()
EMPTY = f"search.space must name at least one setting to draw, such as generator.lr = {EXAMPLE}"


@dataclass(frozen=True, slots=True)
class Space:
    """All dimensions of a search, and the settings that follow from others."""

    dimensions: tuple[Dimension, ...]
    same: tuple[tuple[str, str], ...] = ()  # (setting, the other one whose value it takes)

    @classmethod
    def of(cls, spec: Mapping[str, Any], base: Experiment) -> Space:
        """From the `[search.space]` table. Raises one ConfigError with every mistake in it."""
        written = read_space(spec, base)
        mistakes = [text for _, text in written.mistakes]
        if not mistakes and not written.dimensions:
            mistakes = [EMPTY]
        if mistakes:
            raise ConfigError(mistakes)
        return cls(tuple(written.dimensions), tuple(written.same))

    def point(self, base: Experiment, units: Sequence[float]) -> dict[str, Any]:
        """The point at these quantiles, one for each dimension; those out of play are left out."""
        assert len(units) == len(self.dimensions)
        quantiles = {d.name: unit for d, unit in zip(self.dimensions, units, strict=True)}
        return self.draw(base, lambda d: d.at(quantiles[d.name]))

    def draw(self, base: Experiment, value_of: Callable[[Dimension], Any]) -> dict[str, Any]:
        """The point that `value_of` says; it is asked for what is in play, in the order in which
        dimensions depend on each other.
        """
        return self._walk(base, value_of)[0]

    def settings(self, base: Experiment, point: Point) -> dict[str, Any]:
        """Every setting that a point decides, by its dotted name, ratios and links resolved.

        What is out of play there decides nothing; what a point leaves out stays the base's.
        """
        return self._walk(base, lambda d: point.get(d.name, MISSING))[1]

    def experiment(self, base: Experiment, point: Point) -> Experiment:
        """The base with a point's settings, without a search.

        Raises ConfigError where they break a rule.
        """
        return with_settings(base, self.settings(base, point))

    def point_of(self, experiment: Experiment) -> dict[str, Any]:
        """The point that an experiment is, as far as its values could be drawn here."""
        values = experiment.to_dict()
        point = {}
        for dimension in self.dimensions:
            if dimension.in_play(values):
                value = _drawn_value(dimension, values)
                if value is not MISSING:
                    point[dimension.name] = value
        return point

    def check(self, base: Experiment) -> None:
        """Raises one ConfigError naming every setting whose values would be refused in a trial.

        Tried are each dimension's ends or options with the others at the base's values, then all
        combinations of them; where those are more than 4096, a sample of 512 of them.
        """
        mistakes = [text for _, text in broken_rules(self, base)]
        if mistakes:
            raise ConfigError(mistakes)

    def _walk(
        self, base: Experiment, value_of: Callable[[Dimension], Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(point, settings), each setting decided after those that it refers to."""
        values, point, settings = base.to_dict(), {}, {}
        drawn = {d.key: d for d in self.dimensions}
        links = dict(self.same)
        for key in in_order(self.dimensions, self.same):
            if key in links:
                settings[key] = get(values, links[key])
            else:
                dimension = drawn[key]
                value = value_of(dimension) if dimension.in_play(values) else MISSING
                if value is MISSING:
                    continue
                point[dimension.name] = settings[key] = value
                if dimension.times is not None:
                    settings[key] = value * get(values, dimension.times)
            put(values, key, settings[key])
        return (
            {d.name: point[d.name] for d in self.dimensions if d.name in point},
            {key: settings[key] for key in (*drawn, *links) if key in settings},
        )


def with_settings(base: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """An experiment with settings changed, by dotted name as plain values, without a search.

    Raises ConfigError naming every mistake.
    """
    values = dataclasses.replace(base, search=None).to_dict()
    for key, value in settings.items():
        put(values, key, value)
    return experiment_from_dict(values)


def _drawn_value(dimension: Dimension, values: Mapping[str, Any]) -> Any:
    """What must have been drawn for a setting to be what it is, or MISSING."""
    value = get(values, dimension.key)
    if dimension.times is not None:
        other = get(values, dimension.times)
        if not is_number(value) or not is_number(other) or other == 0:
            return MISSING
        value = _unrounded(dimension, value / other)
    elif dimension.kind == "choice":
        plain = (_plain(dimension.key, option) for option in dimension.options)
        found = [o for o, p in zip(dimension.options, plain, strict=True) if equal(p, value)]
        return found[0] if found else MISSING
    try:
        unit = dimension.unit(value)
    except ValueError:
        return MISSING
    return value if dimension.kind in ("uniform", "loguniform") else dimension.at(unit)


def _unrounded(dimension: Dimension, ratio: float) -> Any:
    """The nearest end or option where a ratio is it but for rounding."""
    exact = dimension.ends
    if dimension.kind == "int":
        exact = (*exact, round(ratio))
    return next((e for e in exact if math.isclose(ratio, e, rel_tol=1e-12)), ratio)


def _plain(key: str, option: Any) -> Any:
    """An option as `Experiment.to_dict` has it."""
    value = parsed(key, option)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value

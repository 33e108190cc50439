"""The `[search.space]` table to dimensions and links, with every mistake in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from graphlib import CycleError
from typing import Any, get_args

from gan.config import ConfigError
from pipeline.dimension import Dimension, equal, in_order, is_number, references, related
from pipeline.experiment import Experiment
from pipeline.identity import leaves
from pipeline.settings import DRAW_WORDS, KINDS, SPACE, draws, expected, get, nearest, parsed
from pipeline.settings import settings as known_settings

EXAMPLE = "{ loguniform = [1e-4, 1e-2] }"
NOT_DRAWN = {  # a setting or a section: why no search draws it
    "name": "a search names its trials",
    "data": "trials are compared on the same data",
    "evaluate": "trials are judged alike",
    "tracking": "it does not change the weights",
    "checkpoint": "it does not change the weights",
    "cluster": "it changes the weights by rounding only",
    "search": "a search does not search itself",
    "turns.total_kimg": "trials are compared at equal images",
}


@dataclass(slots=True)
class Written:
    """What a `[search.space]` table says, and (setting, message) of each mistake in it."""

    dimensions: list[Dimension] = field(default_factory=list)
    same: list[tuple[str, str]] = field(default_factory=list)
    mistakes: list[tuple[str, str]] = field(default_factory=list)

    def sound(self) -> Written:
        """What is left without the mistakes, and without what refers to them."""
        bad = [key for key, _ in self.mistakes]
        needs = references(self.dimensions, self.same)
        spoilt: set[str] = set()
        while True:
            more = {
                key
                for key, others in needs.items()
                if any(related(one, wrong) for one in (key, *others) for wrong in (*bad, *spoilt))
            }
            if more == spoilt:
                return Written(
                    [d for d in self.dimensions if d.key not in spoilt],
                    [link for link in self.same if link[0] not in spoilt],
                )
            spoilt = more


def read_space(spec: Mapping[str, Any], base: Experiment) -> Written:
    """Reads a `[search.space]` table; what it refers to and does not draw is the base's."""
    written = Written()
    tables = dict(draws(spec))
    for key, table in tables.items():
        reader = _Table(key, table)
        reader.said += [*reader.refused(), *_conflicts(key, tables)]
        entry = reader.read()
        if isinstance(entry, Dimension):
            written.dimensions.append(entry)
        elif entry is not None:
            written.same.append((key, entry))
        written.mistakes += [(key, f"{SPACE}{key}: {text}") for text in reader.said]
    wrong = {key for key, _ in written.mistakes}
    straight = _without_circles(written)
    values = base.to_dict()
    for dimension in straight.dimensions:
        if dimension.times and dimension.key not in wrong:
            other = _no_number(dimension.times, straight, values)
            if other is not None:
                text = f"times must name a number, but {dimension.times} can be {other}"
                written.mistakes.append((dimension.key, f"{SPACE}{dimension.key}: {text}"))
    return written


def _without_circles(written: Written) -> Written:
    """What is left without the settings that need themselves, each circle being a mistake."""
    left = Written(list(written.dimensions), list(written.same))
    while True:
        try:
            in_order(left.dimensions, left.same)
            return left
        except CycleError as error:
            circle = error.args[1][::-1]  # each needs the next one
            first = min(circle)
            circle = [*circle[circle.index(first) :], *circle[1 : circle.index(first) + 1]]
            text = f"{SPACE}{first}: depends on itself: {' needs '.join(circle)}"
            written.mistakes.append((first, text))
            left.dimensions = [d for d in left.dimensions if d.key not in circle]
            left.same = [link for link in left.same if link[0] not in circle]


class _Table:
    """One setting's table; what is wrong with it goes to `said`."""

    def __init__(self, key: str, table: Any):
        self.key, self.table = key, table
        self.hint = _searchable().get(key)  # None: not known, so its type is not looked at
        self.said: list[str] = []

    def refused(self) -> list[str]:
        """Why the setting cannot be drawn at all."""
        reason = next((NOT_DRAWN[part] for part in _parts(self.key) if part in NOT_DRAWN), None)
        if self.key not in known_settings():
            return [f"{self.key} is not a setting{nearest(self.key, _searchable())}"]
        return [f"{self.key} is not for a search: {reason}"] if reason else []

    def read(self) -> Dimension | str | None:
        """A dimension, the setting that it is linked to, or None."""
        if not isinstance(self.table, Mapping):
            if self.hint is None:  # said already; and where its table begins is a guess
                return None
            self.said.append(f"must be a table such as {EXAMPLE}, got {self.table!r}")
            return None
        unknown = [word for word in self.table if word not in DRAW_WORDS]
        for word in unknown:
            self.said.append(
                f"{word} is not one of {', '.join(DRAW_WORDS)}{nearest(word, DRAW_WORDS)}"
            )
        kinds = [word for word in (*KINDS, "same") if word in self.table]
        if len(kinds) > 1:
            self.said.append(f"must have one kind of draw, got {' and '.join(kinds)}")
        elif not kinds and not unknown:
            self.said.append(f"must have one of {', '.join(KINDS)} or same, such as {EXAMPLE}")
        times = self._reference("times") if "times" in self.table else None
        when = self._when(self.table["when"]) if "when" in self.table else ()
        if "same" in kinds:
            for word in ("times", "when"):
                if word in self.table:
                    self.said.append(f"same stands alone, without {word}")
            return self._reference("same")
        for kind in kinds:
            drawn = self._options(kind) if kind == "choice" else self._range(kind)
            if drawn is not None and len(kinds) == 1:
                low, high, options = drawn
                return Dimension(
                    key=self.key,
                    kind=kind,  # pyright: ignore[reportArgumentType]
                    low=low,
                    high=high,
                    options=options,
                    times=times,
                    when=when,
                )
        return None

    def _range(self, kind: str) -> tuple[float, float, tuple[()]] | None:
        value, before = self.table[kind], len(self.said)
        whole = kind == "int"
        if self.hint is not None and not numeric(self.hint):
            self.said.append(f"{kind} is for numbers, and {self.key} is {expected(self.hint)}")
        elif self.hint is not None and numeric(self.hint) is int and not whole:
            self.said.append(f"{kind} is not for a whole number; use int or choice")
        if not (
            isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
        ):
            words = "two whole numbers" if whole else "two numbers"
            self.said.append(f"{kind} must be [low, high], {words}, got {value!r}")
            return None
        low, high = value
        if not all(abs(end) <= sys.float_info.max for end in value):
            self.said.append(f"{kind} must have finite ends, got {value}")
            return None
        if whole and not all(isinstance(end, int) for end in value):
            self.said.append(f"int must be [low, high], two whole numbers, got {value}")
        if kind == "loguniform" and low <= 0:
            self.said.append(f"loguniform must begin above 0, got {value}")
        if low < high and high - low > sys.float_info.max:
            self.said.append(f"{kind} must not be wider than floating point, got {value}")
        if low >= high:
            self.said.append(f"{kind} must be [low, high] with low < high, got {value}")
        if len(self.said) > before:
            return None
        return (low, high, ()) if whole else (float(low), float(high), ())

    def _options(self, kind: str) -> tuple[float, float, tuple[Any, ...]] | None:
        options, before = self.table[kind], len(self.said)
        if not isinstance(options, list | tuple) or not options:
            self.said.append(f"choice must be a list of at least one value, got {options!r}")
            return None
        seen: list[Any] = []
        for i, option in enumerate(options):
            value = option
            if is_number(option) and not abs(option) <= sys.float_info.max:
                self.said.append(f"choice {i + 1} must be finite, got {option!r}")
                continue
            try:
                value = self._typed(option)
            except ConfigError as error:
                self.said += [f"choice {i + 1} {text}" for text in error.mistakes]
                continue
            if any(equal(value, old) for old in seen):
                self.said.append(f"choice {i + 1} is there twice, {option!r}")
            seen.append(value)
        return None if len(self.said) > before else (0.0, 0.0, tuple(options))

    def _typed(self, option: Any) -> Any:
        if "times" in self.table:
            whole = self.hint is not None and numeric(self.hint) is int
            if not is_number(option) or (whole and not isinstance(option, int)):
                word = expected(int if whole else float)
                raise ConfigError([f"must be {word} with times, got {option!r}"])
            return option
        return option if self.hint is None else parsed(self.key, option)

    def _reference(self, word: str) -> str | None:
        """The setting that `times` or `same` names."""
        other = self.table[word]
        if not isinstance(other, str):
            self.said.append(f"{word} must name a setting, got {other!r}")
        elif related(other, self.key):
            self.said.append(f"{word} must name another setting, got {other} itself")
        elif other not in _searchable():
            hint = nearest(other, _searchable())
            self.said.append(f"{word} must name a setting, got {other}{hint}")
        elif self.hint is not None and not _fits(self.hint, _searchable()[other], word):
            words = [expected(hint) for hint in (self.hint, _searchable()[other])]
            self.said.append(
                f"{word} cannot be {other}: {self.key} is {words[0]}, {other} is {words[1]}"
            )
        else:
            return other
        return None

    def _when(self, table: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
        if not isinstance(table, Mapping) or not table:
            self.said.append(
                "when must be a table such as { objective.name = "
                f"['relativistic', 'nonsaturating'] }}, got {table!r}"
            )
            return ()
        conditions = []
        for key, wanted in leaves(table):
            if key not in _searchable():
                hint = nearest(key, _searchable())
                self.said.append(f"when: {key} is not a setting{hint}")
                continue
            if related(key, self.key):
                self.said.append(f"when must name another setting, got {key} itself")
                continue
            allowed = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
            if not allowed:
                self.said.append(f"when: {key} must have at least one value, got []")
            for value in allowed:
                try:
                    parsed(key, value)
                except ConfigError as error:
                    self.said += [f"when: {key} {text}" for text in error.mistakes]
            conditions.append((key, allowed))
        return tuple(conditions)


def numeric(hint: Any) -> type | None:
    """float or int where a setting of this type can be a number, else None."""
    options = get_args(hint) or (hint,)
    return next((kind for kind in (float, int) if kind in options), None)


def _fits(hint: Any, other: Any, word: str) -> bool:
    """Whether a setting may take, or be a multiple of, one of another type."""
    if numeric(hint) is not None and numeric(other) is not None:
        return numeric(hint) is float or numeric(other) is int
    return word == "same" and hint == other


def _no_number(key: str, written: Written, values: Mapping[str, Any]) -> str | None:
    """What a setting can be at some point that is no number, in words; else None."""
    link = dict(written.same).get(key)
    if link is not None:
        return _no_number(link, written, values)
    dimension = next((d for d in written.dimensions if d.key == key), None)
    for option in dimension.options if dimension else ():
        if not is_number(option):
            return repr(option)
    if dimension is None or dimension.when:
        value = get(values, key)
        if not is_number(value):
            return "left out" if value is None else f"{value!r}, as in this file"
    return None


def _conflicts(key: str, tables: Iterable[str]) -> list[str]:
    return [
        f"{key} is a part of {other}, which is drawn as a whole"
        for other in tables
        if key.startswith(f"{other}.")
    ]


def _parts(key: str) -> Iterable[str]:
    """The setting and the sections that it is in."""
    return [key, *(key[:i] for i, letter in enumerate(key) if letter == ".")]


@cache
def _searchable() -> dict[str, Any]:
    """The settings that a space can speak of: all but the search's own."""
    return {key: hint for key, hint in known_settings().items() if not related(key, "search")}

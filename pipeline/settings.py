"""Every setting of an experiment by its dotted name: its type, its place in plain values."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gan.config import ConfigError, Schedule, Steps
from pipeline.experiment import Experiment

KINDS = (
    "uniform",
    "loguniform",
    "int",
    "choice",
)  # what a value of the search space is drawn from
DRAW_WORDS = (*KINDS, "same", "times", "when")
SPACE = "search.space."


@cache
def settings(section: type = Experiment, prefix: str = "") -> dict[str, Any]:
    """Every setting's dotted name, with its type."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        inner = [t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)]
        if not inner or get_args(hint):
            found[f"{prefix}{name}"] = hint
        for nested in inner:
            assert isinstance(nested, type)
            found |= settings(nested, f"{prefix}{name}.")
    return found


def nearest(key: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' for a word that is not known, or nothing."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    last = key.rpartition(".")[2]
    near = near or [name for name in known if name.rpartition(".")[2] == last][:1]
    return f"; did you mean {near[0]}?" if near else ""


def expected(hint: Any) -> str:
    """A type in the words of a TOML file."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        type(None): "",
    }
    if hint in words:
        return words[hint]
    if hint is Schedule:
        return "a schedule such as { start = 2e-4, end = 5e-5 }"
    if hint is Steps:
        return "steps such as { at_kimg = [0, 50], values = [2, 1] }"
    options = get_args(hint)
    if get_origin(hint) is tuple:
        return f"a list, each {expected(options[0])}"
    if get_origin(hint) is dict:
        return "a table"
    if options and all(isinstance(option, str) for option in options):
        return "one of " + ", ".join(f"'{option}'" for option in options)
    return " or ".join(word for option in options if (word := expected(option))) or "a table"


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(settings()[key])


def parsed(key: str, value: Any) -> Any:
    """A plain value as the setting holds it, by its type alone: a table becomes a Schedule.

    Raises ConfigError with what was expected, as 'must be ..., got ...'.
    """
    try:
        return _adapter(key).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        broken = [detail.get("ctx", {}).get("error") for detail in error.errors()]
        rules = [
            text for said in broken if isinstance(said, ConfigError) for text in said.mistakes
        ]
        plain = f"must be {expected(settings()[key])}, got {value!r}"
        raise ConfigError([f"of a table: {rule}" for rule in rules] or [plain]) from None


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a setting in nested plain values by its dotted name."""
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[last] = value


def drop(values: dict[str, Any], key: str) -> None:
    """Removes a setting from nested plain values."""
    *sections, last = key.split(".")
    for section in sections:
        values = values.get(section, {})
        if not isinstance(values, dict):
            return
    values.pop(last, None)


def get(values: Any, key: str) -> Any:
    """A setting of nested plain values; None where it is not there."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def entries(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """As `leaves`, but what a setting of the search space is drawn from is one value."""
    for key, value in values.items():
        full = f"{prefix}{key}"
        if not (isinstance(value, Mapping) and value):
            yield full, value
        elif f"{full}." == SPACE:
            yield from ((f"{SPACE}{name}", table) for name, table in draws(value))
        else:
            yield from entries(value, f"{full}.")


def draws(space: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(setting, what it is drawn from) of a `[search.space]` table, unchecked."""
    yield from _flat(space, "", DRAW_WORDS)


def given(point: Mapping[str, Any]) -> dict[str, Any]:
    """One of `search.points` by dotted names; a schedule stays a table."""
    return dict(_flat(point, "", ()))


def _flat(
    tables: Mapping[str, Any], prefix: str, words: Iterable[str]
) -> Iterator[tuple[str, Any]]:
    """Down to the settings; to a table with one of `words` in it where there is no such setting.

    A setting's own parts, such as generator.lr.end, are settings too where nothing else is named.
    """
    for key, value in tables.items():
        full = f"{prefix}{key}"
        inner = isinstance(value, Mapping) and value and not any(word in value for word in words)
        if inner and full in settings():
            inner = words and all(f"{full}.{part}" in settings() for part in value)
        if inner:
            yield from _flat(value, f"{full}.", words)
        else:
            yield full, value

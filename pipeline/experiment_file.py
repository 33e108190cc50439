"""One TOML file to one checked Experiment, with every mistake reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from gan.config import ConfigError, Schedule, Steps
from pipeline.experiment import Experiment, leaves

PLACEHOLDERS = {"name": "unnamed", "data.shards": "unknown"}  # while other mistakes are looked for


@dataclass(frozen=True, slots=True)
class Loaded:
    """An experiment, and for each setting that is not a default where it came from."""

    experiment: Experiment
    sources: dict[str, str]


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """Reads an experiment file, what it extends, and `key=value` overrides.

    Raises one ConfigError with all mistakes, each with its file and key.
    """
    values, sources = _read(Path(path), seen=())
    values.setdefault("name", Path(path).stem)
    mistakes = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            mistakes.append(
                f"an override is key=value, such as turns.total_kimg=100, got {override!r}"
            )
            continue
        _put(values, key.strip(), _parse_value(text.strip()))
        for old in [old for old in sources if old == key or old.startswith(key + ".")]:
            del sources[old]
        sources[key.strip()] = "command line"
    experiment = _validated(values, sources=sources, mistakes=mistakes)
    return Loaded(experiment, sources)


def experiment_from_dict(values: Mapping[str, Any]) -> Experiment:
    """The experiment of `Experiment.to_dict()`. Raises ConfigError naming every mistake."""
    return _validated(dict(values), sources={})


def experiment_toml(experiment: Experiment) -> str:
    """The experiment as a file that `load_experiment` reads; what the run chooses is left out."""
    values: dict[str, Any] = {}
    for key, value in leaves(experiment.to_dict()):
        if value is not None:
            _put(values, key, value)
    return tomli_w.dumps(values)


def _read(path: Path, *, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    resolved = path.expanduser().resolve()
    if resolved in seen:
        raise ConfigError([f"{path}: extends itself by way of {seen[-1].name}"])
    try:
        values = tomllib.loads(resolved.read_text())
    except FileNotFoundError:
        raise ConfigError([f"there is no experiment file {path}"]) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as TOML: {error}"]) from None
    merged, sources = {}, {}
    parent = values.pop("extends", None)
    if parent is not None:
        if not isinstance(parent, str):
            raise ConfigError(
                [f"{path}: extends must name another experiment file, got {parent!r}"]
            )
        merged, sources = _read(resolved.parent / parent, seen=(*seen, resolved))
    for key, value in leaves(values):
        _put(merged, key, value)
        sources[key] = path.name
    return merged, sources


def _parse_value(text: str) -> Any:
    """A TOML value, or the bare words themselves: objective.name=minimax needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[last] = value


def _drop(values: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.get(section, {})
        if not isinstance(values, dict):
            return
    values.pop(last, None)


@cache
def _settings(section: type = Experiment, prefix: str = "") -> dict[str, Any]:
    """Every setting's dotted name, with its type."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        inner = [t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)]
        if not inner or get_args(hint):
            found[f"{prefix}{name}"] = hint
        for nested in inner:
            assert isinstance(nested, type)
            found |= _settings(nested, f"{prefix}{name}.")
    return found


@cache
def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _validated(
    values: dict[str, Any], *, sources: Mapping[str, str], mistakes: Iterable[str] = ()
) -> Experiment:
    """The checked experiment; where there are mistakes, all are raised together."""
    said = list(mistakes)
    values = json.loads(json.dumps(values, default=str))
    bad = _drop_unknown(values, sources=sources, said=said)
    while True:
        try:
            experiment = _adapter().validate_json(json.dumps(values), strict=True)
            break
        except ValidationError as error:
            found = _readable(error, values)
            fresh = [(key, text) for key, text in found if key not in bad]
            dropped = {key for key in bad if key}
            for key, text in fresh:
                # A rule that looks at a dropped value is not broken by the file.
                if not any(old in text for old in dropped):
                    said.append(_placed(key, text, sources))
                bad.add(key)
                _drop(values, key)
            for key in bad & PLACEHOLDERS.keys():
                _put(values, key, PLACEHOLDERS[key])
            if not fresh:
                raise ConfigError(said) from None
    if said:
        raise ConfigError(said)
    return experiment


def _drop_unknown(
    values: dict[str, Any], *, sources: Mapping[str, str], said: list[str]
) -> set[str]:
    settings = _settings()
    sections = {key.rpartition(".")[0] for key in settings}
    bad = set()
    for key, _ in list(leaves(values)):
        if key in settings or (key in sections and key):
            continue
        near = difflib.get_close_matches(key, settings, n=1, cutoff=0.6)
        last = key.rpartition(".")[2]
        near = near or [s for s in settings if s.rpartition(".")[2] == last][:1]
        hint = f"; did you mean {near[0]}?" if near else ""
        said.append(_placed(key, f"{key} is not a setting{hint}", sources))
        bad.add(key)
        _drop(values, key)
    return bad


def _readable(error: ValidationError, values: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, message) of each mistake, in the words of the file."""
    found: dict[str, tuple[str, str]] = {}
    tables: dict[str, list[tuple[str, str]]] = {}
    settings = _settings()
    for detail in error.errors():
        loc = [str(part) for part in detail["loc"]]
        broken = detail.get("ctx", {}).get("error")
        if isinstance(broken, ConfigError):
            section = ".".join(part for part in loc if part not in ("Schedule", "Steps"))
            if section in settings:  # a table in place of a number: wrong as a whole
                tables[section] = [(section, f"{section}.{text}") for text in broken.mistakes]
                continue
            for mistake in broken.mistakes:
                field_name = re.match(r"[\w.]+", mistake)
                name = field_name.group() if field_name else ""
                full = f"{section}.{name}" if f"{section}.{name}" in settings else name
                text = f"{section}.{mistake}" if section and full != name else mistake
                found[full + text] = (full if full in settings else section, text)
            continue
        while loc and ".".join(loc) not in settings:
            loc.pop()
        key = ".".join(loc) or ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing":
            found.setdefault(key, (key, f"{key} must be given"))
        else:
            got = _get(values, key)
            found.setdefault(
                key, (key, f"{key} must be {_expected(settings.get(key))}, got {got!r}")
            )
    # That such a table is no number either goes without saying.
    rest = [mistake for mistake in found.values() if mistake[0] not in tables]
    return [*itertools.chain.from_iterable(tables.values()), *rest]


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _expected(hint: Any) -> str:
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
    if options and all(isinstance(option, str) for option in options):
        return "one of " + ", ".join(f"'{option}'" for option in options)
    return " or ".join(word for option in options if (word := _expected(option))) or "a table"


def _placed(key: str, text: str, sources: Mapping[str, str]) -> str:
    source = next(
        (
            s
            for k, s in sources.items()
            if (key + ".").startswith(k + ".") or k.startswith(key + ".")
        ),
        None,
    )
    return f"{source}: {text}" if source else text

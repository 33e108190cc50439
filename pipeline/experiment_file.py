"""One TOML file to one checked Experiment, with every mistake reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from gan.config import ConfigError
from pipeline.experiment import Experiment
from pipeline.identity import leaves
from pipeline.search_checks import search_mistakes
from pipeline.settings import entries, put
from pipeline.space import EMPTY
from pipeline.validator import PLACEHOLDERS, checked, experiment_from_dict, placed

__all__ = ["Loaded", "experiment_from_dict", "experiment_toml", "load_experiment"]

DRAWN = ("space", "points", "trials")  # of a search: no rule binds these to its other settings


@dataclass(frozen=True, slots=True)
class Loaded:
    """An experiment, and for each setting that is not a default where it came from."""

    experiment: Experiment
    sources: dict[str, str]


def load_experiment(
    path: str | Path, overrides: Iterable[str] = (), *, for_search: bool = False
) -> Loaded:
    """Reads an experiment file, what it extends, and `key=value` overrides.

    A `[search]` is read and checked whatever it is loaded for; `for_search` also demands a space
    and tries its bounds. Raises one ConfigError with all mistakes, each with its file and key.
    """
    values, sources = _read(Path(path), seen=())
    if "name" not in values:
        values["name"] = Path(path).stem
        sources["name"] = f"the file's own name, {Path(path).name}, as it sets none"
    said = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            said.append(
                f"an override is key=value, such as turns.total_kimg=100, got {override!r}"
            )
            continue
        put(values, key.strip(), _parse_value(text.strip()))
        for old in [old for old in sources if old == key or old.startswith(key + ".")]:
            del sources[old]
        sources[key.strip()] = "command line"
    experiment = checked(values, sources=sources, said=said)
    searched = experiment or _with_search_of(values)
    for key, text in search_mistakes(searched, bounds=for_search and experiment is not None):
        if text != EMPTY or not _written_space(values):  # else it was refused above
            said.append(placed(key, text, sources))
    if said:
        raise ConfigError(said)
    assert experiment is not None
    return Loaded(experiment, sources)


def experiment_toml(experiment: Experiment) -> str:
    """The experiment as a file that `load_experiment` reads; what the run chooses is left out."""
    values: dict[str, Any] = {}
    for key, value in leaves(experiment.to_dict()):
        if value is not None:
            put(values, key, value)
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
    for key, value in entries(values):
        put(merged, key, value)
        sources[key] = path.name
    return merged, sources


def _parse_value(text: str) -> Any:
    """A TOML value, or the bare words themselves: objective.name=minimax needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _written_space(values: Mapping[str, Any]) -> Any:
    search = values.get("search")
    return search.get("space") if isinstance(search, Mapping) else search


def _with_search_of(values: Mapping[str, Any]) -> Experiment:
    """The defaults with a file's search, where the file's other settings fit no experiment; with
    what it draws alone where the search itself fits none.
    """
    search = values.get("search", {})
    plain: dict[str, Any] = {"search": search}
    for key, value in PLACEHOLDERS.items():
        put(plain, key, value)
    experiment = checked(plain, sources={}, said=[])
    if experiment is None:
        plain["search"] = {key: search[key] for key in DRAWN if key in search}
        experiment = checked(plain, sources={}, said=[])
    assert experiment is not None
    return experiment

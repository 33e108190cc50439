"""Plain values to one checked Experiment, with every mistake in the words of the file."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from gan.config import ConfigError, Schedule, Steps
from pipeline.experiment import Experiment
from pipeline.settings import SPACE, drop, entries, expected, get, nearest, put, settings

PLACEHOLDERS = {"name": "unnamed", "data.shards": "unknown"}  # while other mistakes are looked for


def experiment_from_dict(values: Mapping[str, Any]) -> Experiment:
    """The experiment of `Experiment.to_dict()`. Raises ConfigError naming every mistake.

    What `[search]` says is taken as it is but for types and ranges: `Space.of` checks the space.
    """
    said: list[str] = []
    experiment = checked(values, sources={}, said=said)
    if said:
        raise ConfigError(said)
    assert experiment is not None
    return experiment


def checked(
    values: Mapping[str, Any], *, sources: Mapping[str, str], said: list[str]
) -> Experiment | None:
    """The experiment without the settings that are mistakes, each of which is added to `said`.

    None where no experiment is left without them.
    """
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    bad = _drop_unknown(plain, sources=sources, said=said)
    while True:
        try:
            return _adapter().validate_json(json.dumps(plain), strict=True)
        except ValidationError as error:
            found = _readable(error, plain)
            fresh = [(key, text) for key, text in found if key not in bad]
            dropped = {key for key in bad if key}
            for key, text in fresh:
                # A rule that looks at a dropped value is not broken by the file.
                if not any(old in text for old in dropped):
                    said.append(placed(key, text, sources))
                bad.add(key)
                drop(plain, key)
            for key in bad & PLACEHOLDERS.keys():
                put(plain, key, PLACEHOLDERS[key])
            if not fresh:
                assert said
                return None


def placed(key: str, text: str, sources: Mapping[str, str]) -> str:
    """A mistake about a setting, with the file that it is in."""
    source = next(
        (
            s
            for k, s in sources.items()
            if (key + ".").startswith(k + ".") or k.startswith(key + ".")
        ),
        None,
    )
    return f"{source}: {text}" if source else text


@cache
def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _drop_unknown(
    values: dict[str, Any], *, sources: Mapping[str, str], said: list[str]
) -> set[str]:
    known = settings()
    sections = {key.rpartition(".")[0] for key in known}
    bad = set()
    for key, _ in list(entries(values)):
        if key in known or (key in sections and key) or key.startswith(SPACE):
            continue
        said.append(placed(key, f"{key} is not a setting{nearest(key, known)}", sources))
        bad.add(key)
        drop(values, key)
    return bad


def _readable(error: ValidationError, values: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, message) of each mistake, in the words of the file."""
    found: dict[str, tuple[str, str]] = {}
    tables: dict[str, list[tuple[str, str]]] = {}
    known = settings()
    for detail in error.errors():
        loc = [str(part) for part in detail["loc"]]
        broken = detail.get("ctx", {}).get("error")
        if isinstance(broken, ConfigError):
            section = ".".join(part for part in loc if not part[:1].isupper())  # no class names
            if {Schedule, Steps} & {*get_args(known.get(section))}:
                # A table in place of a number: wrong as a whole.
                tables[section] = [(section, f"{section}.{text}") for text in broken.mistakes]
                continue
            for mistake in broken.mistakes:
                field_name = re.match(r"[\w.]+", mistake)
                name = field_name.group() if field_name else ""
                full = f"{section}.{name}" if f"{section}.{name}" in known else name
                text = f"{section}.{mistake}" if section and full != name else mistake
                found[full + text] = (full if full in known else section, text)
            continue
        while loc and ".".join(loc) not in known:
            loc.pop()
        key = ".".join(loc) or ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing":
            found.setdefault(key, (key, f"{key} must be given"))
        else:
            got = get(values, key)
            found.setdefault(key, (key, f"{key} must be {expected(known.get(key))}, got {got!r}"))
    # That such a table is no number either goes without saying.
    rest = [mistake for mistake in found.values() if mistake[0] not in tables]
    return [*itertools.chain.from_iterable(tables.values()), *rest]

"""The gate's rules from a TOML file, for promoters whose rules are not the defaults."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from gan.config import ConfigError
from pipeline.gate import GateRules


def load_rules(path: str | Path | None) -> GateRules:
    """The rules in the file; those left out, or all without a file, are the defaults.

    Raises one ConfigError with every mistake.
    """
    if path is None:
        return GateRules()
    try:
        values = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as TOML: {error}"]) from None
    names = [rule.name for rule in dataclasses.fields(GateRules)]
    mistakes = []
    for key in sorted(values.keys() - set(names)):
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; rules are {', '.join(names)}"
        mistakes.append(f"{path}: {key} is not a rule{hint}")
        del values[key]
    rules = GateRules()
    try:
        rules = TypeAdapter(GateRules).validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        mistakes += [f"{path}: {text}" for text in _readable(error)]
    if mistakes:
        raise ConfigError(mistakes)
    return rules


def _readable(error: ValidationError) -> list[str]:
    found: list[str] = []
    for detail in error.errors():
        broken = detail.get("ctx", {}).get("error")
        if isinstance(broken, ConfigError):
            found += broken.mistakes
        else:
            key = ".".join(map(str, detail["loc"]))
            found.append(f"{key} must be {detail['msg'].lower()}, got {detail['input']!r}")
    return found

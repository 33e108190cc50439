"""Whether every point of a search space is an experiment: its ends and options are tried."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gan.config import ConfigError
from pipeline.dimension import Dimension
from pipeline.experiment import Experiment
from pipeline.settings import SPACE

if TYPE_CHECKING:
    from pipeline.space import Space

MAX_COMBINATIONS = 4096  # of ends and options that are all tried
SAMPLED_COMBINATIONS = 512  # else


def broken_rules(space: Space, base: Experiment) -> list[tuple[str, str]]:
    """(setting, message) of every rule that some point breaks, each once.

    What a value that is refused by itself breaks together with others is left out: it goes with
    the value.
    """
    nothing = [("search.space", text) for text in _mistakes(space, base, {})]
    found = {text: (key, f"{key}: with nothing drawn: {text}") for key, text in nothing}
    refused = []
    for dimension in space.dimensions:
        key = f"{SPACE}{dimension.key}"
        for i, value in enumerate(dimension.ends):
            for text in _mistakes(space, base, reaching(space, dimension, value)):
                refused.append((dimension.name, value))
                found.setdefault(text, (key, f"{key}: {_label(dimension, i, value)}: {text}"))
    for point in _combinations(space):
        for text in _mistakes(space, base, point):
            if text not in found:
                blamed = _blamed(space, base, point, text)
                if any(item in refused for item in blamed.items()):
                    continue
                shown = " and ".join(f"{name} = {value}" for name, value in blamed.items())
                found[text] = ("search.space", f"search.space: {shown}: {text}")
    return list(found.values())


def _mistakes(space: Space, base: Experiment, point: dict[str, Any]) -> tuple[str, ...]:
    try:
        space.experiment(base, point)
    except ConfigError as error:
        return error.mistakes
    return ()


def reaching(space: Space, dimension: Dimension, value: Any) -> dict[str, Any]:
    """The point with this value of a dimension and, of the rest, only what brings it into play."""
    point, waiting = {dimension.name: value}, list(dimension.when)
    while waiting:
        key, allowed = waiting.pop()
        for other in space.dimensions:
            fitting = [v for v in allowed if other.key == key and _can_be(other, v)]
            if fitting and other.name not in point:
                point[other.name] = fitting[0]
                waiting += other.when
    return point


def _can_be(dimension: Dimension, value: Any) -> bool:
    if dimension.times is not None:
        return False
    try:
        dimension.unit(value)
    except ValueError:
        return False
    return True


def _combinations(space: Space) -> Iterator[dict[str, Any]]:
    names = [d.name for d in space.dimensions]
    ends = [d.ends for d in space.dimensions]
    if math.prod(map(len, ends)) <= MAX_COMBINATIONS:
        for values in itertools.product(*ends):
            yield dict(zip(names, values, strict=True))
        return
    dice = random.Random(0)
    for _ in range(SAMPLED_COMBINATIONS):
        yield {name: dice.choice(values) for name, values in zip(names, ends, strict=True)}


def _blamed(space: Space, base: Experiment, point: dict[str, Any], text: str) -> dict[str, Any]:
    """The part of a point that is enough to break a rule."""
    blamed = dict(point)
    for name in point:
        fewer = {n: value for n, value in blamed.items() if n != name}
        if text in _mistakes(space, base, fewer):
            blamed = fewer
    return blamed


def _label(dimension: Dimension, i: int, value: Any) -> str:
    if dimension.kind == "choice":
        return f"choice {i + 1}"
    ratio = f" times {dimension.times}" if dimension.times else ""
    return f"{dimension.kind}'s {'low' if i == 0 else 'high'} end {value}{ratio}"

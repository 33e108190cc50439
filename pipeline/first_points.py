"""What a search tries first: the file's own, given points, the best of earlier searches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.experiment import Experiment
from pipeline.search_checks import given_points
from pipeline.search_config import SearchConfig
from pipeline.settings import get
from pipeline.space import Point, Space, with_settings

log = logging.getLogger(__name__)

WARM_POINTS = 4  # so many of the best trials of earlier searches are tried again, at most


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What a trial is to be."""

    point: dict[str, Any]  # as far as it could have been drawn
    settings: dict[str, Any]  # what the trial's experiment has in place of the base's
    origin: str  # "the file's own", "given", "from search NAME", "random", "quasirandom", "tpe"


@dataclass(frozen=True, slots=True)
class Earlier:
    """A trial of an earlier search: one to learn from and, if it is among the best, to try again.

    Its values must mean the same here: the same objectives on the same data and extractor.
    """

    search: str
    point: Point
    values: tuple[float, ...] | None  # one for each objective; None: it diverged or failed


def first_points(
    config: SearchConfig, space: Space, base: Experiment, *, earlier: Sequence[Earlier] = ()
) -> list[Suggestion]:
    """What comes before the searcher has its say: the file's own experiment, `search.points`, and
    the best four of `earlier`, however many trials there are to be: a search to which trials are
    added goes on as if it had been asked for all of them.
    """
    first = [Suggestion(space.point_of(base), _own_settings(space, base), "the file's own")]
    for settings in given_points(space, dataclasses.replace(base, search=config)):
        experiment = with_settings(base, settings)
        first.append(Suggestion(space.point_of(experiment), settings, "given"))
    for old in _best(earlier)[:WARM_POINTS]:
        point = dict(old.point)
        settings = space.settings(base, point)
        if all(settings != known.settings for known in first):
            first.append(Suggestion(point, settings, f"from search {old.search}"))
    return first


def _own_settings(space: Space, base: Experiment) -> dict[str, Any]:
    """The base's own value of every setting that the space decides there.

    Not by way of its point: a ratio times its setting may differ from the base in the last bit,
    and a value outside the space or a linked setting that differs would be lost.
    """
    values = base.to_dict()
    keys = [d.key for d in space.dimensions if d.in_play(values)]
    return {key: get(values, key) for key in (*keys, *(key for key, _ in space.same))}


def _best(earlier: Iterable[Earlier]) -> list[Earlier]:
    """Earlier trials from the best; with two objectives front after front (Pareto)."""
    left = [old for old in earlier if old.values is not None]
    ordered: list[Earlier] = []
    while left:
        front = [a for a in left if not any(_dominates(b, a) for b in left)]
        ordered += sorted(front, key=lambda old: old.values or ())
        left = [old for old in left if not any(old is a for a in front)]
    return ordered


def _dominates(one: Earlier, other: Earlier) -> bool:
    assert one.values is not None
    assert other.values is not None
    pairs = list(zip(one.values, other.values, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def inside(earlier: Sequence[Earlier], space: Space, base: Experiment) -> list[Earlier]:
    """Those whose points this space could have drawn; says how many could not."""
    usable = [old for old in earlier if is_inside(old.point, space, base)]
    if len(usable) < len(earlier):
        log.warning(
            "%d of %d trials of earlier searches are outside this search's space and not used",
            len(earlier) - len(usable),
            len(earlier),
        )
    return usable


def is_inside(point: Point, space: Space, base: Experiment) -> bool:
    """Whether a point is one that the space could have drawn, nothing missing or too much."""
    try:
        drawn = space.draw(base, lambda d: d.at(d.unit(point[d.name])))
    except (KeyError, ValueError):
        return False
    return drawn.keys() == point.keys()

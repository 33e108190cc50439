"""An experiment's `[search]` checked as a whole: space, bounds, points and scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gan.config import ConfigError
from pipeline.bounds import broken_rules
from pipeline.dimension import Dimension, in_order, is_number
from pipeline.experiment import Experiment
from pipeline.settings import SPACE, draws, get, given, nearest, put, settings
from pipeline.space import EMPTY, Space, with_settings
from pipeline.space_file import read_space

CHANGEABLE = (  # what PBT may change while a game is on
    "generator.lr",
    "discriminator.lr",
    "objective.r1_gamma",
    "objective.r2_gamma",
    "objective.gp_lambda",
    "turns.d_steps",
    "ema.half_life_kimg",
)


def search_space(base: Experiment) -> Space:
    """The space of an experiment's `[search]`, with all that it asks for checked.

    Raises one ConfigError with every mistake: of the table, of its bounds (`Space.check`), of
    `search.points`, and with scheduler = 'pbt' of what cannot change in mid-run.
    """
    mistakes = search_mistakes(base, bounds=True)
    if mistakes:
        raise ConfigError(text for _, text in mistakes)
    assert base.search is not None
    return Space.of(base.search.space, base)


def search_mistakes(base: Experiment, *, bounds: bool) -> list[tuple[str, str]]:
    """(setting, message) of every mistake in an experiment's search.

    Without `bounds` only what is written is looked at: an empty space is none, and the bounds are
    not tried.
    """
    search = base.search
    if search is None or not search.space:
        return [("search.space", EMPTY)] if bounds else []
    written = read_space(search.space, base)
    mistakes = [(f"{SPACE}{key}", text) for key, text in written.mistakes]
    keys = [key for key, _ in draws(search.space)]
    most = search.trials - 1
    if len(search.points) > most:
        text = (
            f"search.points must be at most {most} with search.trials = {search.trials}, as trial "
            f"0 is the file's own, got {len(search.points)}; set search.trials to "
            f"{len(search.points) + 1} or more"
        )
        mistakes.append(("search.points", text))
    if search.scheduler == "pbt":
        known = [key for key in keys if key in settings()]
        mistakes += _pbt_mistakes(known, written.dimensions)
    for i, point in enumerate(search.points):
        mistakes += [
            ("search.points", f"search.points: point {i + 1}: {text}")
            for text in _given_mistakes(base, point, keys)
        ]
    if bounds and not mistakes and not written.dimensions:
        mistakes = [("search.space", EMPTY)]
    if bounds:
        sound = written.sound()
        space = Space(tuple(sound.dimensions), tuple(sound.same))
        mistakes += broken_rules(space, base)
    return mistakes


def given_points(space: Space, base: Experiment) -> list[dict[str, Any]]:
    """The settings of each of `search.points`, by dotted name.

    A linked setting that a point does not name follows its link; all else that it does not name
    stays the base's, a ratio's setting too.
    """
    points = []
    for tables in base.search.points if base.search else ():
        values, point = base.to_dict(), given(tables)
        for key, value in point.items():
            put(values, key, value)
        links = dict(space.same)
        for key in in_order(space.dimensions, space.same):
            if key in links and key not in point:
                point[key] = get(values, links[key])
                put(values, key, point[key])
        points.append(point)
    return points


def _given_mistakes(base: Experiment, point: Mapping[str, Any], keys: list[str]) -> list[str]:
    told = given(point)
    unknown = [key for key in told if key not in keys]
    said = [f"{key} is not in search.space{nearest(key, keys)}" for key in unknown]
    try:
        with_settings(base, {key: value for key, value in told.items() if key not in unknown})
    except ConfigError as error:
        said += error.mistakes
    return said


def _pbt_mistakes(keys: list[str], dimensions: list[Dimension]) -> list[tuple[str, str]]:
    said = [
        (key, f"pbt cannot change it in mid-run, only {', '.join(CHANGEABLE)}")
        for key in keys
        if key not in CHANGEABLE
    ]
    for dimension in dimensions:
        if dimension.when:
            said.append((dimension.key, "when is not for pbt, which changes all of its settings"))
        if not all(is_number(option) for option in dimension.options):
            said.append((dimension.key, "choice must be of numbers with pbt, without schedules"))
    return [(f"{SPACE}{key}", f"{SPACE}{key}: {text}") for key, text in said]

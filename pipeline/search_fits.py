"""Whether a search can be held on this data and judged: every rule, before anything starts."""

from __future__ import annotations

from typing import Any

from gan.config import ConfigError, Schedule, Steps, check_sample
from gan.moments import MAX_KID_DIM
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.extractors import configured_extractor
from pipeline.search_checks import search_space
from pipeline.space import Space

MIN_IMAGES = 20  # for a spread with an error


def checked_space(experiment: Experiment, shards: ShardSet) -> Space:
    """The search space, all of whose points can be played on this data and judged.

    Raises one ConfigError with every mistake.
    """
    mistakes: list[str] = []
    space = None
    try:
        space = search_space(experiment)
    except ConfigError as error:
        mistakes += error.mistakes
    for found in (
        lambda: check_sample(experiment.game, shards.sample),
        lambda: _check_judged(experiment, shards),
        lambda: _check_played(experiment, space, shards),
        lambda: _check_constant(experiment, space),
        lambda: _check_generations(experiment),
    ):
        try:
            found()
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(dict.fromkeys(mistakes))
    assert space is not None
    return space


def _check_played(experiment: Experiment, space: Space | None, shards: ShardSet) -> None:
    """Networks and conditionings that are drawn must fit the data too."""
    mistakes: dict[str, None] = {}
    for dimension in space.dimensions if space else ():
        for value in dimension.ends:
            played = space.experiment(experiment, {dimension.name: value}) if space else experiment
            try:
                check_sample(played.game, shards.sample)
            except ConfigError as error:
                said = f"search.space.{dimension.key}: {value!r}: "
                mistakes |= dict.fromkeys(said + mistake for mistake in error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)


def _check_judged(experiment: Experiment, shards: ShardSet) -> None:
    extractor = configured_extractor(experiment.evaluate, shards.sample.shape)
    objectives = experiment.search.objectives if experiment.search else ()
    if "kid" in objectives and extractor.dim > MAX_KID_DIM:
        raise ConfigError(
            [
                f"search.objectives: 'kid' is not measured in training with more than "
                f"{MAX_KID_DIM} features, {extractor.name} has {extractor.dim}; use 'fd'"
            ]
        )
    if "diversity" in objectives and experiment.evaluate.images < MIN_IMAGES:
        raise ConfigError(
            [f"evaluate.images must be >= {MIN_IMAGES} for search.objectives with 'diversity', "
             f"got {experiment.evaluate.images}"]
        )  # fmt: skip


def _check_constant(experiment: Experiment, space: Space | None) -> None:
    """PBT changes settings in steps, which must begin at a number."""
    if space is None or experiment.search is None or experiment.search.scheduler != "pbt":
        return
    flat = {dim.key for dim in space.dimensions} | {key for key, _ in space.same}
    moving = [key for key in sorted(flat) if isinstance(_value(experiment, key), Schedule | Steps)]
    if moving:
        raise ConfigError(
            f"{key} must be a number in the file for search.scheduler = 'pbt', which makes a "
            f"schedule of its own"
            for key in moving
        )


def _value(experiment: Experiment, key: str) -> Any:
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _check_generations(experiment: Experiment) -> None:
    """Every generation of PBT ends with an evaluation."""
    search = experiment.search
    if search is None or search.scheduler != "pbt":
        return
    length = experiment.turns.total_nimg / search.generations
    if experiment.evaluate_nimg > length:
        raise ConfigError(
            [
                f"evaluate.every_kimg must be at most a generation of search.scheduler = 'pbt', "
                f"{length / 1000:g} kimg, got {experiment.evaluate_nimg / 1000:g}"
            ]
        )

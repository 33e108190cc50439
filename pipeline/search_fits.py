"""Whether a search can be held on this data and judged: every rule, before anything starts."""

from __future__ import annotations

from typing import Any

from gan.config import ConfigError, Schedule, Steps, check, check_sample
from gan.moments import MAX_KID_DIM
from pipeline.bounds import reaching
from pipeline.data_checks import check_data
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.extractors import configured_extractor
from pipeline.search_checks import search_space
from pipeline.space import Space

MIN_IMAGES = 20  # for scores without their bias and with errors: two in each group of a tally


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
        lambda: check_data(experiment.data, shards),
        lambda: _check_judged(experiment),
        lambda: _check_features(experiment, shards),
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
    """Networks, conditionings and orders that are drawn must fit the data too, also those that
    come into play only with others. Each mistake is told once, of the value that needs the fewest
    others.
    """
    if space is None:
        return
    tried = [(dim, value, reaching(space, dim, value))
             for dim in space.dimensions for value in dim.ends]  # fmt: skip
    told = set(_misfits(experiment, shards))  # those of the file itself
    mistakes = []
    for dimension, value, point in sorted(tried, key=lambda each: len(each[2])):
        for text in _misfits(space.experiment(experiment, point), shards):
            if text not in told:
                told.add(text)
                mistakes.append(f"search.space.{dimension.key}: {value!r}: {text}")
    if mistakes:
        raise ConfigError(mistakes)


def _misfits(experiment: Experiment, shards: ShardSet) -> tuple[str, ...]:
    """Why these players cannot play on this data."""
    try:
        check_sample(experiment.game, shards.sample)
        check_data(experiment.data, shards)
    except ConfigError as error:
        return error.mistakes
    return ()


def _check_judged(experiment: Experiment) -> None:
    """Scores have errors, and what compares trials also picks their snapshots."""
    if experiment.search is None:
        return
    evaluate, objectives = experiment.evaluate, experiment.search.objectives
    check(
        (
            evaluate.images >= MIN_IMAGES,
            f"evaluate.images must be >= {MIN_IMAGES} for a search, which compares scores "
            f"without their bias by their errors, got {evaluate.images}; set evaluate.images to "
            f"{MIN_IMAGES} or more",
        ),
        (
            evaluate.metric == objectives[0],
            f"evaluate.metric must be {objectives[0]!r} where search.objectives begins with it, "
            f"got {evaluate.metric!r}",
        ),
    )


def _check_features(experiment: Experiment, shards: ShardSet) -> None:
    """KID in training is for features that are not too many."""
    objectives = experiment.search.objectives if experiment.search else ()
    extractor = configured_extractor(experiment.evaluate, shards.sample.shape)
    check(
        *(
            (
                "kid" not in measures or extractor.dim <= MAX_KID_DIM,
                f"{key}: 'kid' is not measured in training with more than {MAX_KID_DIM} features, "
                f"{extractor.name} has {extractor.dim}; use 'fd'",
            )
            for key, measures in (
                ("search.objectives", objectives),
                ("evaluate.metric", (experiment.evaluate.metric,)),
            )
        )
    )


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

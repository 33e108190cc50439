"""Whether a search can be held at all: every rule, before anything is started."""

from __future__ import annotations

from typing import Any

from gan.config import ConfigError, Schedule, Steps, check_sample
from gan.moments import MAX_KID_DIM
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.extractors import configured_extractor
from pipeline.space import Space


def checked_space(experiment: Experiment, shards: ShardSet) -> Space:
    """The search space, all of whose points can be played on this data and judged.

    Raises one ConfigError with every mistake.
    """
    config = experiment.search
    if config is None:
        raise ConfigError(["a search needs a [search] section with a [search.space]"])
    space = Space.of(config.space, experiment)
    mistakes = []
    for found in (
        lambda: space.check(experiment),
        lambda: check_sample(experiment.game, shards.sample),
        lambda: _check_judged(experiment, shards),
        lambda: _check_constant(experiment, space),
    ):
        try:
            found()
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(dict.fromkeys(mistakes))
    return space


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
    if "diversity" in objectives and experiment.evaluate.images < 20:
        raise ConfigError(
            [f"evaluate.images must be >= 20 for search.objectives with 'diversity', "
             f"got {experiment.evaluate.images}"]
        )  # fmt: skip


def _check_constant(experiment: Experiment, space: Space) -> None:
    """PBT changes settings in steps, which must begin at a number."""
    if experiment.search is None or experiment.search.scheduler != "pbt":
        return
    flat = {dim.key for dim in space.dimensions} | {key for key, _ in space.same}
    moving = [key for key in sorted(flat) if isinstance(_value(experiment, key), Schedule | Steps)]
    if moving:
        raise ConfigError(
            f"{key} must be a number in the file for search.scheduler = 'pbt', which makes its own "
            f"schedule of it" for key in moving
        )  # fmt: skip


def _value(experiment: Experiment, key: str) -> Any:
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part)
    return value

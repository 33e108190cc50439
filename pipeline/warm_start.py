"""The trials of earlier searches that a search learns from: `search.warm_start`, checked."""

from __future__ import annotations

from typing import Any

from gan.config import ConfigError
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.first_points import Earlier
from pipeline.ledger import RECORD, Ledger
from pipeline.search_config import NAME
from pipeline.storage import Storage, open_storage


def earlier_trials(experiment: Experiment, shards: ShardSet) -> list[Earlier]:
    """The ended trials of the searches in `search.warm_start`, by name in `cluster.storage`.

    Writes nothing. Raises one ConfigError with every mistake: what is no name of a search,
    searches that are not there, that were on other data than `shards`, or that judged otherwise.
    """
    assert experiment.search is not None
    root = open_storage(experiment.cluster.storage)
    mistakes: list[str] = []
    found: list[Earlier] = []
    for name in dict.fromkeys(experiment.search.warm_start):
        try:
            other = _search_at(root, name)
            _check_comparable(other, experiment, shards)
        except ConfigError as error:
            mistakes += error.mistakes
            continue
        for trial in other.trials():
            if trial.ended:
                values = trial.reached(experiment.search.objectives)
                found.append(Earlier(name, trial.point, values))
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _search_at(root: Storage, name: str) -> Ledger:
    """The search of this name. Raises ConfigError where there is none."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            [f"search.warm_start must name searches (1 to 48 of a-z, 0-9 and '-'), got {name!r}"]
        )
    if not root.exists(f"{name}/{RECORD}"):
        raise ConfigError(
            [
                f"search.warm_start: there is no search {name!r} in {root.uri} (no "
                f"{name}/{RECORD}); correct the name, or leave it out"
            ]
        )
    return Ledger.at(root.below(name))


def _check_comparable(other: Ledger, experiment: Experiment, shards: ShardSet) -> None:
    """Raises ConfigError where scores of the other search mean something else here."""
    there, here = _judged_by(other.experiment), _judged_by(experiment)
    differences = [
        f"{key} was {there[key]!r} there and is {here[key]!r} here"
        for key in here
        if there[key] != here[key]
    ]
    if other.data_digest != shards.digest:
        differences.append(
            f"its data has digest {other.data_digest[:12]}, "
            f"that at {shards.uri} has {shards.digest[:12]}"
        )
    if differences:
        raise ConfigError(
            f"search.warm_start: {other.name!r} must be on the same data and judged alike, but "
            f"{difference}; leave it out, or make them alike"
            for difference in differences
        )


def _judged_by(experiment: Experiment) -> dict[str, Any]:
    """What the scores of two searches must share to be compared, besides the data."""
    assert experiment.search is not None
    return {
        "evaluate.images": experiment.evaluate.images,
        "evaluate.extractor": experiment.evaluate.extractor,
        "search.objectives": list(experiment.search.objectives),
    }

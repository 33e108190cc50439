"""Which of the settings that a search drew mattered: fANOVA over its trials, with uncertainty."""

from __future__ import annotations

import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from pipeline.ledger import Trial
from pipeline.search_shown import LOGARITHMIC, Axis, axis_of, score
from pipeline.space import Dimension

FEWEST = 5  # trials with a score, below which a forest says nothing
RESAMPLES = 20
TREES = 16  # a resample; all resamples together are the forest


@dataclass(frozen=True, slots=True)
class Importance:
    """What share of the scores' variance each setting explains by itself; or why none is known."""

    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # mean, deviation
    num_trials: int = 0  # that it rests on
    not_judged: tuple[str, ...] = ()  # settings that some trials do not have
    reason: str = ""  # why there are no shares


def importance(
    trials: Sequence[Trial], dimensions: Sequence[Dimension], *, objective: str, floor: float
) -> Importance:
    """Each drawn setting's share of the variance of the score over the space that was drawn from.

    Functional ANOVA of a random forest (Hutter, Hoos and Leyton-Brown 2014), by Optuna: main
    effects only, so the shares add up to 1 less what settings do together. Mean and standard
    deviation over RESAMPLES bootstraps of the trials, at a fixed seed.

    The score is a trial's best reading. Frechet distances and KID of GANs span decades, so their
    logarithm is taken, of the value or `floor`, whichever is larger: else the worst trial would
    be all the variance there is. From it the median of the trial's generation is taken off, so
    that a population's progress is not put down to what its last members happened to draw.
    Trials that diverged or failed have no score and are left out, and so are those whose point
    is not known in full (the file's own settings can lie where the space draws nothing). Settings
    that only some trials have in play are not judged: a forest cannot split on what is not there.
    """
    found = {t.number: s for t in trials if t.ended and (s := score(t, objective))}
    always = [d.name for d in dimensions if not d.when]
    scored = [t for t in trials if t.number in found and all(name in t.point for name in always)]
    if len(scored) < FEWEST:
        return Importance(reason=f"Too few trials ended with a score ({len(scored)} of {FEWEST} "
                          "needed) to say which settings matter.")  # fmt: skip
    judged = [d for d in dimensions if all(d.name in trial.point for trial in scored)]
    left_out = tuple(d.name for d in dimensions if d not in judged)
    if not judged:
        return Importance(not_judged=left_out, reason="No setting was drawn in every trial.")
    values = _compared(scored, {n: s.value for n, s in found.items()}, objective, floor)
    axes = [axis_of(d, [trial.point[d.name] for trial in scored]) for d in judged]
    study = [_frozen(trial, axes, value) for trial, value in zip(scored, values, strict=True)]
    shares = _bootstrap(study)
    if not shares:
        return Importance(not_judged=left_out, reason="All trials scored the same.")
    return Importance(shares, len(scored), left_out)


def _compared(
    trials: Sequence[Trial], scores: Mapping[int, float], objective: str, floor: float
) -> list[float]:
    """Scores, logarithmic where that is fair, less the median of their generation."""
    by_generation = defaultdict(list)
    values = {}
    for trial in trials:
        value = scores[trial.number]
        values[trial.number] = math.log(max(value, floor)) if objective in LOGARITHMIC else value
        by_generation[trial.generation].append(values[trial.number])
    middle = {g: statistics.median(found) for g, found in by_generation.items()}
    return [values[trial.number] - middle[trial.generation] for trial in trials]


def _frozen(trial: Trial, axes: Sequence[Axis], value: float) -> optuna.trial.FrozenTrial:
    """For Optuna: ranges as positions from 0 to 1, options by their numbers."""
    distributions: dict[str, BaseDistribution] = {}
    parameters: dict[str, float | int] = {}
    for axis in axes:
        drawn = trial.point[axis.name]
        if axis.options:
            distributions[axis.name] = CategoricalDistribution(range(len(axis.options)))
            parameters[axis.name] = axis.options.index(drawn)
        else:
            distributions[axis.name] = FloatDistribution(0.0, 1.0)
            parameters[axis.name] = axis.at(drawn)
    return optuna.create_trial(params=parameters, distributions=distributions, value=value)


def _bootstrap(study: Sequence[optuna.trial.FrozenTrial]) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each parameter's share; the largest first. Empty without variance."""
    draw, found = random.Random(0), defaultdict(list)
    for seed in range(RESAMPLES):
        resample = draw.choices(study, k=len(study))
        if len({trial.value for trial in resample}) > 1:
            for name, share in _shares(resample, seed=seed).items():
                found[name].append(float(share))
    known = {
        name: (statistics.fmean(shares), statistics.pstdev(shares))
        for name, shares in found.items()
    }
    return dict(sorted(known.items(), key=lambda item: -item[1][0]))


def _shares(trials: Sequence[optuna.trial.FrozenTrial], *, seed: int) -> dict[str, float]:
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a study in memory is no news
    try:
        study = optuna.create_study()
        study.add_trials(trials)
        judge = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=seed)
        return judge.evaluate(study)
    finally:
        optuna.logging.set_verbosity(said)

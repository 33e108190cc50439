"""Which point of a search comes next: given ones first, then random, quasi-random or Optuna's TPE.

A suggestion depends on the search's seed, the trial's number and, with TPE, on the trials that are
known by then; never on what was suggested before by the same object. So a search that was killed
goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.draws import random_point, uniform
from pipeline.experiment import Experiment
from pipeline.first_points import Earlier, Suggestion, first_points, inside, is_inside
from pipeline.search_config import SearchConfig
from pipeline.space import Dimension, Point, Space

if TYPE_CHECKING:
    import optuna

START_UP = 8  # trials that TPE must know before it suggests; quasi-random ones until then
SOBOL_BITS = 30


class Suggester(Protocol):
    """Says what trial `number` is to be, and learns what became of the others."""

    def ask(self, number: int) -> Suggestion | None:
        """The suggestion for a trial, which now counts as under way.

        None: nothing to suggest until another trial has ended.
        """
        ...

    def begun(self, number: int, point: Point) -> None:
        """Trial `number` is under way with this point: it was asked for before a restart."""
        ...

    def tell(self, number: int, point: Point, values: Sequence[float] | None) -> None:
        """What a trial reached, by objective, smaller being better; None: it diverged or failed.

        One that was cut short is told with the best that it reached.
        """
        ...


def suggester_for(
    config: SearchConfig, space: Space, base: Experiment, *, earlier: Sequence[Earlier] = ()
) -> Suggester:
    """The suggester that a search asks for.

    Trial 0 is the file's own experiment; then come `search.points`, then the best of `earlier`
    that this space can hold, four at most, then what the searcher says. A quasi-random point
    is the one of the trial's own number, so that none comes twice whatever came first.
    """
    usable = inside(earlier, space, base)
    first = first_points(config, space, base, earlier=usable)
    if config.searcher == "tpe":
        return Tpe(config, space, base, first=first, earlier=usable)
    return Stateless(config, space, base, first=first)


class Stateless:
    """Random and quasi-random search: a point follows from its number alone."""

    def __init__(
        self, config: SearchConfig, space: Space, base: Experiment, *, first: Sequence[Suggestion]
    ):
        self._config, self._space, self._base, self._first = config, space, base, first

    def ask(self, number: int) -> Suggestion:
        if number < len(self._first):
            return self._first[number]
        seed = self._config.seed
        if self._config.searcher == "random":
            point = random_point(self._space, self._base, seed, number)
        else:
            point = quasirandom_point(self._space, self._base, seed, number)
        settings = self._space.settings(self._base, point)
        return Suggestion(point, settings, self._config.searcher)

    def begun(self, number: int, point: Point) -> None:
        pass

    def tell(self, number: int, point: Point, values: Sequence[float] | None) -> None:
        pass


class Tpe:
    """Optuna's tree-structured Parzen estimator, over all settings together (multivariate).

    Trials under way count as bad ones (the constant liar), so that parallel trials differ. A trial
    that diverged or failed counts as worse than all others by their whole range: Optuna would
    leave a failed one out, and so would go on suggesting what diverges.
    """

    def __init__(
        self,
        config: SearchConfig,
        space: Space,
        base: Experiment,
        *,
        first: Sequence[Suggestion],
        earlier: Sequence[Earlier] = (),
    ):
        self._config, self._space, self._base = config, space, base
        self._first, self._earlier = first, earlier
        self._under_way: dict[int, Point] = {}
        self._told: dict[int, tuple[Point, tuple[float, ...] | None]] = {}

    def ask(self, number: int) -> Suggestion:
        if number < len(self._first):
            suggestion = self._first[number]
        elif len(self._told) + len(self._earlier) < START_UP:
            point = quasirandom_point(self._space, self._base, self._config.seed, number)
            suggestion = self._suggestion(point, "quasirandom")
        else:
            suggestion = self._suggestion(self._suggested(number), "tpe")
        self.begun(number, suggestion.point)
        return suggestion

    def begun(self, number: int, point: Point) -> None:
        if number not in self._told:
            self._under_way[number] = point

    def tell(self, number: int, point: Point, values: Sequence[float] | None) -> None:
        assert values is None or all(map(math.isfinite, values)), values
        self._under_way.pop(number, None)
        self._told[number] = point, None if values is None else tuple(values)

    def _suggestion(self, point: dict[str, Any], origin: str) -> Suggestion:
        return Suggestion(point, self._space.settings(self._base, point), origin)

    def _suggested(self, number: int) -> dict[str, Any]:
        """A point from a study made anew, with a sampler whose seed is this number's own."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                multivariate=True,
                group=True,  # settings that are in play together are drawn together
                constant_liar=True,
                n_startup_trials=1,
                seed=int(uniform(self._config.seed, "tpe", number) * 2**32),
            )
        goal = optuna.study.StudyDirection.MINIMIZE
        goals = [goal] * len(self._config.objectives)
        study = optuna.create_study(directions=goals, sampler=sampler)
        study.add_trials(self._known())
        trial = study.ask()
        return self._space.draw(self._base, lambda d: _drawn(trial, d))

    def _known(self) -> list[optuna.trial.FrozenTrial]:
        """All that is known, earlier searches first, then by number: the order of arrival has no
        influence. Points that are not wholly in the space are no examples of it.
        """
        ended = [(e.point, e.values) for e in self._earlier]
        ended += [self._told[number] for number in sorted(self._told)]
        penalty = _penalty([values for _, values in ended if values is not None])
        if penalty is None:
            penalty = (0.0,) * len(self._config.objectives)
        trials = [self._frozen(point, values or penalty) for point, values in ended]
        trials += [
            self._frozen(self._under_way[number], None) for number in sorted(self._under_way)
        ]
        return [trial for trial in trials if trial is not None]

    def _frozen(
        self, point: Point, values: Sequence[float] | None
    ) -> optuna.trial.FrozenTrial | None:
        """A point as a trial of Optuna's, running without values; None outside the space."""
        import optuna

        if not is_inside(point, self._space, self._base):
            return None
        taken = [d for d in self._space.dimensions if d.name in point]
        return optuna.create_trial(
            state=optuna.trial.TrialState.RUNNING
            if values is None
            else optuna.trial.TrialState.COMPLETE,
            values=None if values is None else list(values),
            params={d.name: _as_param(d, point[d.name]) for d in taken},
            distributions={d.name: _distribution(d) for d in taken},
        )


def quasirandom_point(space: Space, base: Experiment, seed: int, index: int) -> dict[str, Any]:
    """Point `index` of a Sobol sequence with a random digital shift, on SciPy's directions.

    The shift (XOR of every coordinate with one draw) keeps what makes Sobol points even: of the
    first 2^m each of 2^m equal cells of a dimension holds one. SciPy's own scrambling would too,
    but its draws may change with NumPy's version.
    """
    import numpy as np
    from scipy.stats import qmc

    sobol = qmc.Sobol(len(space.dimensions), scramble=False, bits=SOBOL_BITS)
    if index:
        sobol.fast_forward(index)
    cells = np.rint(sobol.random(1)[0] * 2**SOBOL_BITS).astype(int)
    shift = [int(uniform(seed, "sobol", d.name) * 2**SOBOL_BITS) for d in space.dimensions]
    return space.point(base, ((cells ^ np.array(shift)) / 2**SOBOL_BITS).tolist())


def _penalty(values: Sequence[tuple[float, ...]]) -> tuple[float, ...] | None:
    """Worse than all values, by objective; None where there are none."""
    if not values:
        return None
    columns = list(zip(*values, strict=True))
    return tuple(max(c) + max(max(c) - min(c), abs(max(c)), 1.0) for c in columns)


def _distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    import optuna

    low, high = dimension.low, dimension.high
    if dimension.kind == "choice":  # by place: tables are no choices to Optuna
        return optuna.distributions.CategoricalDistribution(range(len(dimension.options)))
    if dimension.kind == "int":
        return optuna.distributions.IntDistribution(int(low), int(high))
    return optuna.distributions.FloatDistribution(low, high, log=dimension.kind == "loguniform")


def _as_param(dimension: Dimension, value: Any) -> Any:
    """A value as Optuna has it: the place of a choice's option."""
    if dimension.kind == "choice":
        return int(dimension.unit(value) * len(dimension.options))
    return int(value) if dimension.kind == "int" else float(value)


def _drawn(trial: optuna.Trial, dimension: Dimension) -> Any:
    """What Optuna says for a dimension."""
    name, low, high = dimension.name, dimension.low, dimension.high
    if dimension.kind == "choice":
        return dimension.options[trial.suggest_categorical(name, range(len(dimension.options)))]
    if dimension.kind == "int":
        return trial.suggest_int(name, int(low), int(high))
    return trial.suggest_float(name, low, high, log=dimension.kind == "loguniform")

"""Which trials a search has: independent ones, or a population in generations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.checkpoint import newest_nimg
from pipeline.first_points import Earlier
from pipeline.ledger import Ledger, Trial
from pipeline.population import Member, Move, next_generation
from pipeline.settings import get
from pipeline.space import Space
from pipeline.suggest import suggester_for


class Plan(Protocol):
    """Decides on trials that do not exist yet."""

    def next(self, trials: Sequence[Trial]) -> Trial | None:
        """The next trial to begin; None where others have to end first."""
        ...

    def exhausted(self, trials: Sequence[Trial]) -> bool:
        """Whether no trial is to come any more, whatever the running ones do."""
        ...

    def begun(self, trial: Trial) -> None:
        """Learns of a trial that was under way when the search was interrupted."""
        ...

    def ended(self, trial: Trial) -> None:
        """Learns how a trial ended."""
        ...


class TrialByTrial:
    """Independent trials: the searcher says where, the stopping rule how long."""

    def __init__(self, ledger: Ledger, space: Space, *, earlier: Sequence[Earlier] = ()):
        self.ledger, self.config = ledger, ledger.config
        self.suggester = suggester_for(self.config, space, ledger.experiment, earlier=earlier)

    def next(self, trials: Sequence[Trial]) -> Trial | None:
        number = len(trials)
        suggestion = self.suggester.ask(number)
        if suggestion is None:
            return None
        return Trial(
            number=number,
            run=self.ledger.run_name(number),
            point=suggestion.point,
            settings=suggestion.settings,
            origin=suggestion.origin,
            until_nimg=self.ledger.experiment.turns.total_nimg,
        )

    def exhausted(self, trials: Sequence[Trial]) -> bool:
        return len(trials) >= self.config.trials

    def begun(self, trial: Trial) -> None:
        self.suggester.begun(trial.number, trial.point)

    def ended(self, trial: Trial) -> None:
        self.suggester.tell(trial.number, trial.point, trial.reached(self.config.objectives))


class Generations:
    """Population based training: generations of equal length, each continuing the best of the
    last.
    """

    def __init__(self, ledger: Ledger, space: Space, *, earlier: Sequence[Earlier] = ()):
        self.ledger, self.space, self.config = ledger, space, ledger.config
        self.size = self.config.trials
        self.first = suggester_for(self.config, space, ledger.experiment, earlier=earlier)

    def until(self, generation: int) -> int:
        """Where a generation ends, in images: at an evaluation, so that a replay is judged where
        its members were.
        """
        experiment = self.ledger.experiment
        total, every = experiment.turns.total_nimg, experiment.evaluate_nimg
        if generation + 1 == self.config.generations:
            return total
        due = round(total * (generation + 1) / self.config.generations / every) * every
        return math.ceil(due / experiment.tick_nimg) * experiment.tick_nimg

    def next(self, trials: Sequence[Trial]) -> Trial | None:
        number = len(trials)
        generation, member = divmod(number, self.size)
        if generation == 0:
            return self._first(member)
        last = [trial for trial in trials if trial.generation == generation - 1]
        if not all(trial.ended for trial in last):
            return None
        move = self._moves(last, generation)[member]
        return self._later(number, generation, move, last[move.parent])

    def exhausted(self, trials: Sequence[Trial]) -> bool:
        return len(trials) >= self.size * self.config.generations or self._all_lost(trials)

    def begun(self, trial: Trial) -> None:
        """Nothing to learn: every generation is decided from the ledger."""

    def ended(self, trial: Trial) -> None:
        """As for `begun`."""

    def _all_lost(self, trials: Sequence[Trial]) -> bool:
        newest = max((trial.generation for trial in trials), default=0)
        last = [trial for trial in trials if trial.generation == newest]
        return len(last) == self.size and all(t.state in ("diverged", "failed") for t in last)

    def _first(self, member: int) -> Trial:
        suggestion = self.first.ask(member)
        assert suggestion is not None
        return Trial(
            number=member,
            run=self.ledger.run_name(member),
            point=suggestion.point,
            settings=suggestion.settings,
            origin=suggestion.origin,
            member=member,
            until_nimg=self.until(0),
        )

    def _moves(self, last: Sequence[Trial], generation: int) -> list[Move]:
        objective = self.config.objectives[0]
        members = []
        for trial in last:
            reading = trial.readings[-1] if trial.readings else None
            lost = trial.state != "complete" or reading is None
            members.append(
                Member(
                    number=int(trial.member or 0),
                    point=trial.point,
                    score=None if lost or reading is None else reading.values[objective],
                    error=0.0 if reading is None else reading.errors[objective],
                )
            )
        return next_generation(members, self.space, seed=self.config.seed, generation=generation)

    def _later(self, number: int, generation: int, move: Move, parent: Trial) -> Trial:
        base = self.ledger.experiment
        now, file = self.space.settings(base, move.point), base.to_dict()
        from_nimg = newest_nimg(self.ledger.run_of(parent).storage)
        settings = {
            key: lived(parent.settings.get(key, get(file, key)), value, from_nimg=from_nimg)
            for key, value in now.items()
        }
        return Trial(
            number=number,
            run=self.ledger.run_name(number),
            point=dict(move.point),
            settings=settings,
            origin=move.origin,
            generation=generation,
            member=move.member,
            parent=parent.number,
            from_nimg=from_nimg,
            nimg=from_nimg,
            until_nimg=self.until(generation),
        )


def lived(before: Any, value: float, *, from_nimg: int) -> Any:
    """A setting's whole life: what it was, then `value` from `from_nimg` images on.

    A number where it never changed, else a table of Steps.
    """
    steps = before if isinstance(before, dict) else {"at_kimg": [0.0], "values": [before]}
    if steps["values"][-1] == value:
        return before
    return {
        "at_kimg": [*steps["at_kimg"], from_nimg / 1000],
        "values": [*steps["values"], value],
    }

"""The course of a search: which trial comes next, and what becomes of the ones that run.

Knows neither Ray nor MLflow. Everything it decides is in the ledger before it has an effect, so
that a course which is taken up again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gan.config import ConfigError
from pipeline.branch import branch
from pipeline.checkpoint import newest_nimg
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.extractors import absolute_name, absolute_weights
from pipeline.first_points import Earlier
from pipeline.ledger import Ledger, State, Trial
from pipeline.population import Member, Move, next_generation
from pipeline.run import Run
from pipeline.settings import get
from pipeline.space import Space, with_settings
from pipeline.stopping import rule_for
from pipeline.suggest import suggester_for

log = logging.getLogger(__name__)

MAX_FAILED_IN_A_ROW = 3  # so many trials without one evaluation, and the search gives up


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial's process ended, in its own words."""

    state: State
    reason: str = ""


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


class Course:
    """One search under way; the thread that drives Ray and the one that shows may both call it."""

    def __init__(self, ledger: Ledger, shards: ShardSet, space: Space, plan: Plan):
        self.ledger, self.shards, self.space, self.plan = ledger, shards, space, plan
        self.total_nimg = ledger.experiment.turns.total_nimg
        self.objective = ledger.config.objectives[0]
        self.rule = rule_for(ledger.config, total_nimg=self.total_nimg)
        self.trials = ledger.trials()
        self.stopping = False  # somebody pressed Ctrl-C
        self.gave_up = ""  # why the search ended before its time
        self.changed: Callable[[Trial], None] = lambda trial: None
        self._lock = threading.RLock()
        self._unfinished = [t.number for t in self.trials if not t.ended]
        for trial in self.trials:
            if trial.ended:
                self.plan.ended(trial)
            else:
                self.plan.begun(trial)

    def next(self) -> Trial | None:
        """The next trial to play, with its run's folder made; None where others must end first.

        Trials that were running when the search was interrupted come first.
        """
        with self._lock:
            if self._unfinished:
                trial = self._trial(self._unfinished.pop(0))
                self._judge(trial)  # the answer to its last reading may have been lost
            else:
                drawn = self.plan.next(self.trials)
                if drawn is None:
                    return None
                trial = drawn
                self.ledger.write(trial)
                self.trials.append(trial)
            try:
                self._make_run(trial)
            except ConfigError as error:  # a combination of settings that no check had tried
                self._end(trial, Ending("failed", "; ".join(error.mistakes)))
                return None
            trial.state = "running"
            self._tell(trial)
            return trial

    @property
    def finished(self) -> bool:
        """Whether there is no trial to begin any more, in this session at least."""
        with self._lock:
            return bool(self.stopping or self.gave_up) or self._all_begun

    @property
    def complete(self) -> bool:
        """Whether every trial that the search is to have has ended."""
        with self._lock:
            return self._all_begun and all(trial.ended for trial in self.trials)

    @property
    def _all_begun(self) -> bool:
        return not self._unfinished and (self._spent_all() or self.plan.exhausted(self.trials))

    @property
    def running(self) -> list[Trial]:
        """Trials that are being played."""
        with self._lock:
            return [trial for trial in self.trials if trial.state == "running"]

    def heard(self, number: int) -> None:
        """A trial was evaluated: notes it, and asks the trial to stop where the rule says so."""
        with self._lock:
            trial = self._trial(number)
            self.ledger.catch_up(trial)
            if trial.state == "running":
                self._judge(trial)
            self._tell(trial)

    def ended(self, number: int, ending: Ending) -> None:
        """A trial's process is over."""
        with self._lock:
            trial = self._trial(number)
            if trial.ended:
                return
            if self.ledger.has_run(trial):
                self.ledger.catch_up(trial)
            if ending.state == "stopped" and not trial.reason:
                trial.state = "waiting"  # the whole search was asked to stop; it goes on later
                self._tell(trial)
            else:
                self._end(trial, ending)

    def stop(self) -> None:
        """Asks every running trial to checkpoint and return; begins no other."""
        with self._lock:
            self.stopping = True
            for trial in self.running:
                self.ledger.run_of(trial).request_stop()

    def _judge(self, trial: Trial) -> None:
        """Asks a trial to stop where the rule says so."""
        if trial.reason or not self.ledger.has_run(trial):
            return
        curves = {t.number: t.readings for t in self.trials if t.state != "failed"}
        lost = {t.number for t in self.trials if t.state == "diverged"}
        reason = self.rule.verdict(trial.number, curves, diverged=lost)
        if reason is not None:
            trial.reason = reason
            self.ledger.run_of(trial).request_stop()

    def _end(self, trial: Trial, ending: Ending) -> None:
        trial.state = ending.state
        trial.reason = ending.reason or (trial.reason if ending.state == "stopped" else "")
        self._tell(trial)
        self.plan.ended(trial)
        self._look_for_a_crash_loop()

    def _trial(self, number: int) -> Trial:
        return next(trial for trial in self.trials if trial.number == number)

    def _tell(self, trial: Trial) -> None:
        self.ledger.write(trial)
        self.changed(trial)

    def _make_run(self, trial: Trial) -> None:
        if self.ledger.has_run(trial):
            run = self.ledger.run_of(trial)
            if not trial.reason:
                run.withdraw_stop()
            return
        experiment = _found_from_anywhere(self.experiment_of(trial), self.shards)
        lineage = {"search": {"name": self.ledger.name, "id": self.ledger.id,
                              "trial": trial.number, "point": dict(trial.point)}}  # fmt: skip
        if trial.parent is None:
            Run.open(trial.run, experiment, self.shards, lineage=lineage)
            return
        parent = self.ledger.run_of(self._trial(trial.parent))
        branch(parent, trial.run, experiment, self.shards, nimg=trial.from_nimg, lineage=lineage)

    def experiment_of(self, trial: Trial) -> Experiment:
        """The experiment that a trial plays, as one that could be trained by itself."""
        return experiment_of(self.ledger, trial)

    def _spent_all(self) -> bool:
        budget = self.ledger.config.budget_kimg
        return budget is not None and sum(t.spent_nimg for t in self.trials) >= budget * 1000

    def _look_for_a_crash_loop(self) -> None:
        ended = [trial for trial in self.trials if trial.ended][-MAX_FAILED_IN_A_ROW:]
        if len(ended) == MAX_FAILED_IN_A_ROW and all(
            trial.state == "failed" and not trial.readings for trial in ended
        ):
            self.gave_up = (
                f"{MAX_FAILED_IN_A_ROW} trials in a row failed before their first evaluation, "
                f"the last with: {ended[-1].reason}"
            )


def experiment_of(ledger: Ledger, trial: Trial) -> Experiment:
    """What a trial plays, for `forger train`: its settings, without the search."""
    base = ledger.experiment
    changes = {
        "name": trial.run,
        "tracking.experiment": base.tracking.experiment or base.name,
        "tracking.model": base.tracking.model or base.name,
        "cluster.storage": str(ledger.runs.root),
    }
    experiment = with_settings(base, trial.settings)
    for key, value in changes.items():
        experiment = experiment.replace(key, value)
    return experiment


def _found_from_anywhere(experiment: Experiment, shards: ShardSet) -> Experiment:
    """With names that hold in any folder, because Ray runs trials in folders of its own."""
    evaluate = dataclasses.replace(
        experiment.evaluate,
        extractor=absolute_name(experiment.evaluate.extractor),
        weights=absolute_weights(experiment.evaluate.weights),
    )
    data = dataclasses.replace(experiment.data, shards=shards.uri)
    return dataclasses.replace(experiment, data=data, evaluate=evaluate)


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
        return round(total * (generation + 1) / self.config.generations / every) * every

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

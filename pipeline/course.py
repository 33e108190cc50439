"""The course of a search: which trial comes next, and what becomes of the ones that run.

Knows neither Ray nor MLflow. Everything it decides is in the ledger before it has an effect, so
that a course which is taken up again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from gan.config import ConfigError
from pipeline.branch import branch
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.extractors import absolute_name, absolute_weights
from pipeline.ledger import Ledger, State, Trial
from pipeline.plans import Plan
from pipeline.run import Run
from pipeline.space import Space, with_settings
from pipeline.stopping import rule_for

log = logging.getLogger(__name__)

MAX_FAILED_IN_A_ROW = 3  # so many trials without one evaluation, and the search gives up


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trial's process ended, in its own words."""

    state: State
    reason: str = ""


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
                if self.ledger.has_run(trial):  # what it was evaluated to may not have been heard
                    self.ledger.catch_up(trial)
                    self._judge(trial)
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
        return not self._unfinished and (self.ledger.spent_all or self.plan.exhausted(self.trials))

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
            # Where the whole search was asked to stop, it goes on later.
            waits = ending.state == "stopped" and not trial.reason
            if self.ledger.has_run(trial):
                self.ledger.catch_up(trial, whole=not waits)
            if waits:
                trial.state = "waiting"
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
        """Shows the rule each reading once, as if each were heard alone; asks the trial to stop
        where it says so.
        """
        curves = {t.number: t.readings for t in self.trials if t.state != "failed"}
        lost = {t.number for t in self.trials if t.state == "diverged"}
        for index, reading in enumerate(trial.readings):
            if trial.reason or reading.nimg <= trial.judged_nimg:
                continue
            shown = curves | {trial.number: trial.readings[: index + 1]}
            trial.reason = self.rule.verdict(trial.number, shown, diverged=lost) or ""
            trial.judged_nimg = reading.nimg
        if trial.reason:
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
        experiment = _found_from_anywhere(experiment_of(self.ledger, trial), self.shards)
        if self.ledger.has_run(trial):
            run = self.ledger.run_of(trial)
            run.experiment = experiment  # the cluster may be another one than it began on
            run.publish()
            if not trial.reason:
                run.withdraw_stop()
            return
        lineage = {"search": {"name": self.ledger.name, "id": self.ledger.id,
                              "trial": trial.number, "point": dict(trial.point)}}  # fmt: skip
        if trial.parent is None:
            Run.open(trial.run, experiment, self.shards, lineage=lineage)
            return
        parent = self.ledger.run_of(self._trial(trial.parent))
        branch(parent, trial.run, experiment, self.shards, nimg=trial.from_nimg, lineage=lineage)

    def _look_for_a_crash_loop(self) -> None:
        ended = [trial for trial in self.trials if trial.ended][-MAX_FAILED_IN_A_ROW:]
        if len(ended) == MAX_FAILED_IN_A_ROW and all(
            trial.state == "failed" and not trial.readings for trial in ended
        ):
            self.gave_up = (
                f"{MAX_FAILED_IN_A_ROW} trials in a row failed before their first evaluation, "
                f"the last with: {ended[-1].reason}"
            )
            self.stop()


def experiment_of(ledger: Ledger, trial: Trial) -> Experiment:
    """What a trial plays, for `forger train`: its settings, without the search."""
    base = ledger.experiment
    changes = {
        "name": trial.run,
        "tracking.experiment": base.tracking.experiment or base.name,
        "tracking.model": base.tracking.model or base.name,
        "cluster.storage": ledger.runs.uri,
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

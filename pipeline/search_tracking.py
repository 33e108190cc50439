"""A search in MLflow: a parent run, and below it every trial, shipped from its journal."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from gan.config import ConfigError
from pipeline.backend import Backend
from pipeline.experiment_file import experiment_toml
from pipeline.identity import leaves
from pipeline.ledger import Ledger, Trial
from pipeline.run import now_ms
from pipeline.tracking import (
    MAX_PARAM,
    Tracker,
    experiment_called,
    open_tracker,
    run_url,
    shipped,
)

log = logging.getLogger(__name__)

STATUS = {  # of a trial's run in MLflow; FAILED for the others
    "complete": "FINISHED",
    "stopped": "FINISHED",
    "waiting": "KILLED",
    "running": "KILLED",
}


def open_search_tracker(where: Backend, ledger: Ledger) -> SearchTracker:
    """The search's end of MLflow. Raises ConfigError where MLflow refuses us, in its own words."""
    try:
        return SearchTracker(where, ledger)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            [f"MLflow at {where.shown} cannot be used: {type(error).__name__}: {error}"]
        ) from error


class SearchTracker:
    """One search's end of MLflow. One process a search has it: the driver."""

    def __init__(self, where: Backend, ledger: Ledger):
        self.where, self.ledger = where, ledger
        self.client = where.client()
        name = ledger.experiment.tracking.experiment or ledger.experiment.name
        self.experiment_id = experiment_called(self.client, name, artifacts=where.artifacts)
        self.run_id = self._find_run() or self._create_run()
        self._describe()
        self.client.update_run(self.run_id, status="RUNNING")
        self._open: dict[int, Tracker] = {}
        self._closed: dict[int, str] = {}  # MLflow's runs of the trials that have ended
        self._complained = False

    @property
    def url(self) -> str:
        """What to open in a browser, or the command that serves it."""
        return run_url(self.where, self.experiment_id, self.run_id)

    def _find_run(self) -> str | None:
        found = self.client.search_runs(
            [self.experiment_id],
            filter_string=f"tags.`forger.search_id` = '{self.ledger.id}' "
            "and tags.`forger.kind` = 'search'",
            max_results=1,
        )
        return found[0].info.run_id if found else None

    def _create_run(self) -> str:
        ledger = self.ledger
        tags = {
            "forger.kind": "search",
            "forger.search": ledger.name,
            "forger.search_id": ledger.id,
            "forger.data_digest": ledger.data_digest,
            "forger.folder": ledger.storage.uri,
        }
        created = self.client.create_run(self.experiment_id, tags=tags, run_name=ledger.name)
        return created.info.run_id

    def _describe(self) -> None:
        """Params and the file, where an interruption had left them out."""
        from mlflow.entities import Param

        experiment, run_id = self.ledger.experiment, self.run_id
        if "search.trials" in self.client.get_run(run_id).data.params:
            return
        whole = experiment.flat() | dict(leaves({"search": experiment.to_dict()["search"]}))
        # The one that is looked for comes last, so that it says that all are there.
        whole["search.trials"] = whole.pop("search.trials")
        params = [Param(key, str(value)[:MAX_PARAM]) for key, value in whole.items()]
        self.client.log_text(run_id, experiment_toml(experiment), "experiment.toml")
        for start in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[start : start + 100])

    def follow(self, trial: Trial, *, last: bool = False) -> None:
        """Ships what a trial journalled since, and ends its run where the trial has ended; with
        `last` also where it waits for the search to go on.

        A server that fails is named once; what it missed is sent by a later call.
        """
        if trial.number in self._closed or not self.ledger.has_run(trial):
            return
        if trial.state == "waiting" and trial.number not in self._open:
            return
        try:
            self._ship(trial, last=last)
        except Exception as error:  # whatever tracking does, the search goes on
            if not self._complained:
                log.warning(
                    "MLflow took no metrics (%s); the search goes on, they are kept", error
                )
            self._complained = True

    def _ship(self, trial: Trial, *, last: bool) -> None:
        over = last or trial.ended  # asked first: its last tick is in the journal by then
        if trial.ended and self._known_to_be_over(trial):
            return
        tracker = self._open.get(trial.number)
        if tracker is None:
            run = self.ledger.run_of(trial)
            tracker = self._open[trial.number] = open_tracker(self.where, run, parent=self.run_id)
            tracker.tag({"forger.origin": trial.origin})
            trial.mlflow_url = tracker.url
        tracker.ship(list(tracker.run.journal(after=tracker.shipped)))
        if not over:
            return
        best = tracker.run.best()
        if best is not None:
            times = [line.time_ms for line in tracker.run.journal() if line.nimg == best.card.nimg]
            time_ms = (times or [now_ms()])[0]
            tracker.log_best(best.card.scores, best.card.nimg, time_ms=time_ms)
        tracker.tag({"forger.state": trial.state, "forger.reason": trial.reason})
        tracker.finish(STATUS.get(trial.state, "FAILED"))
        del self._open[trial.number]
        self._closed[trial.number] = tracker.run_id

    def _known_to_be_over(self, trial: Trial) -> bool:
        """Whether an earlier session ended the trial's run in MLflow, with all of its ticks."""
        if trial.number in self._open:
            return False
        run = self.ledger.run_of(trial)
        found = shipped(run)
        if found is None or found[1] < max((line.nimg for line in run.journal()), default=-1):
            return False
        if self.client.get_run(found[0]).info.status not in ("FINISHED", "FAILED"):
            return False
        self._closed[trial.number] = found[0]
        return True

    @property
    def missed(self) -> list[int]:
        """The trials of which MLflow has not taken all."""
        ended = (trial for trial in self.ledger.trials() if trial.ended)
        return [t.number for t in ended if self.ledger.has_run(t) and t.number not in self._closed]

    def give_up(self, status: str, reason: str = "") -> None:
        """Ends the parent as FAILED or KILLED, and the runs of trials that go on later as KILLED.

        A server that is away at that moment is named and no more.
        """
        for trial in self.ledger.trials():
            self.follow(trial, last=True)
        try:
            self.close(status, tags={"forger.reason": reason} if reason else {})
        except Exception as error:
            log.warning("MLflow could not be told that the search is %s: %s", status, error)

    def close(self, status: str, *, files: Path | None = None, tags: dict[str, str]) -> None:
        """Ends the parent as FINISHED, FAILED or KILLED, with the files of a folder."""
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)
        if files is not None:
            self.client.log_artifacts(self.run_id, str(files))
        self.client.set_terminated(self.run_id, status=status)

    def log_result(self, values: dict[str, float], nimg: int, *, time_ms: int) -> None:
        """Logs what the search came to; the same point twice is one."""
        from mlflow.entities import Metric

        points = [Metric(k, v, time_ms, nimg) for k, v in values.items() if math.isfinite(v)]
        self.client.log_batch(self.run_id, metrics=points)

    def mlflow_run_of(self, trial: Trial) -> str:
        """The MLflow run of a trial that has ended, once MLflow has taken all of it."""
        return self._closed[trial.number]

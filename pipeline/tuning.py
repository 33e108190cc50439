"""A search's trials on Ray Tune: it places them, runs them side by side and replaces lost ones."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from pipeline.cluster import slots, trial_resources  # sets Ray's environment before it is imported

# Tune's own result files and progress are for people who have no journal and no screen.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from pipeline.course import Course, Ending
from pipeline.trial import play_trial

MAX_REASON = 300

for noisy in ("ray.tune", "ray.air", "ray.train"):
    logging.getLogger(noisy).setLevel(logging.CRITICAL)  # failures are told by the ledger


def run_trials(course: Course) -> None:
    """Plays the course's trials to the end of the search, or until it is asked to stop.

    Must be called within `connected`. Raises ConfigError where the cluster is too small for one
    trial.
    """
    ledger = course.ledger
    cluster = ledger.experiment.cluster
    records = tempfile.mkdtemp(prefix="forger-tune-")  # Ray's; nobody reads them again
    tuner = tune.Tuner(
        tune.with_resources(
            functools.partial(play_trial, search=ledger.storage.uri), trial_resources(cluster)
        ),
        tune_config=tune.TuneConfig(
            search_alg=_Next(course),
            scheduler=_Follow(course),
            num_samples=-1,
            max_concurrent_trials=min(slots(cluster), ledger.config.parallel or 10**6),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            # A name of its own: Ray takes one that it knows for a search to resume.
            name=f"{ledger.name}-{uuid.uuid4().hex[:8]}",
            storage_path=records,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(records, ignore_errors=True)


class _Next(Searcher):
    """Gives Tune the course's next trial by its number; all that is known of it is in the ledger.

    Nothing is saved here, and nothing that Tune pickles is ever read: a search that was killed
    goes on from its ledger.
    """

    def __init__(self, course: Course):
        super().__init__()
        self.course = course

    def suggest(self, trial_id: str) -> Any:  # a str too, which ray.tune.search leaves out
        trial = None if self.course.finished else self.course.next()
        if trial is not None:
            return {"number": trial.number}
        return Searcher.FINISHED if self.course.finished else None

    def on_trial_complete(self, trial_id: str, result=None, error=False) -> None:
        """Told by the scheduler's side, which knows the error."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes pickles of all that it is given


class _Follow(FIFOScheduler):
    """Passes on what Tune hears. Trials are stopped by a request that they read at their next
    tick, so that they leave a checkpoint, and their process can play the next trial.
    """

    def __init__(self, course: Course):
        super().__init__()
        self.course = course

    def on_trial_result(self, tune_controller, trial, result: dict[str, Any]) -> str:
        if not result.get("ending"):
            self.course.heard(trial.config["number"])
        return FIFOScheduler.CONTINUE

    def on_trial_complete(self, tune_controller, trial, result: dict[str, Any]) -> None:
        ending = Ending(result["ending"], result.get("reason", ""))
        self.course.ended(trial.config["number"], ending)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above

    def on_trial_error(self, tune_controller, trial) -> None:
        if not trial.should_recover():  # else Tune begins it again, from its checkpoint
            self.course.ended(trial.config["number"], Ending("failed", _reason(trial)))


def _reason(trial: Any) -> str:
    """The last line of what Tune noted of a trial's last error, which is the error itself.

    From its text: the error as an object is a pickle.
    """
    try:
        lines = Path(trial.error_file).read_text().strip().splitlines()
    except (OSError, TypeError):
        lines = []
    return lines[-1].strip()[:MAX_REASON] if lines else "its process was lost"

"""Stage: Ray Train around pipeline.play, followed from the driver, ending in a registered
generator.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gan.config import ConfigError, check_sample
from pipeline.backend import Backend, backend
from pipeline.checkpoint import newest_nimg
from pipeline.cluster import check_address, connected
from pipeline.data_checks import check_data
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment import Experiment
from pipeline.extractors import configured_extractor
from pipeline.fits import TrainingError, play_on_ray
from pipeline.journal import JournalLine
from pipeline.lease import Lease, take
from pipeline.play import Outcome
from pipeline.registry import Registered, register
from pipeline.run import Run, free_name, now_ms
from pipeline.shards import verify_shards
from pipeline.storage import open_storage
from pipeline.tracking import Tracker, open_tracker

log = logging.getLogger(__name__)

PATIENCE_SEC = 5


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to."""

    run: Run
    nimg: int
    finished: bool
    registered: Registered | None  # once finished
    where: Backend
    mlflow_url: str | None


@dataclass(frozen=True, slots=True)
class Watcher:
    """What the stage tells while it works.

    `begun` gets the run, MLflow's address, and the nimg that the run starts from.
    """

    begun: Callable[[Run, str, int], None]
    ticked: Callable[[JournalLine], None]
    said: Callable[[str], None]


def train(
    experiment: Experiment, watcher: Watcher, *, again: bool = False, register_best: bool = True
) -> Trained:
    """Trains the experiment's run to its end and registers the best generator.

    A run that is complete is returned as it is; with `again`, another is begun beside it. Without
    `register_best` nothing is registered. On KeyboardInterrupt the workers checkpoint at their
    next tick and the run is returned unfinished; a second one gives up at once. Raises ConfigError
    for the user's mistakes, before anything is started, and TrainingError where the workers failed
    for good.
    """
    shards = open_shards(experiment.data.shards)
    check_sample(experiment.game, shards.sample)
    check_data(experiment.data, shards)
    configured_extractor(experiment.evaluate, shards.sample.shape)
    verify_shards(shards)
    where = backend(experiment.cluster.storage)
    check_address()
    name = experiment.name
    if again:
        name = free_name(open_storage(experiment.cluster.storage), name)
    run = Run.open(name, experiment, shards)
    if run.result is not None:
        result = run.result
        registered = _registered(result["registered"])
        return Trained(run, result["nimg"], True, registered, where, result["mlflow_url"])

    def journalled() -> dict[str, Any]:
        return {"journalled": run.journalled_nimg}

    with take(run.storage, who=f"forger train {run.name}", note=journalled) as lease:
        return _train(run, shards, where, watcher, lease, register_best=register_best)


def _registered(record: dict[str, Any] | None) -> Registered | None:
    """The version that a complete run's result names, if any."""
    if record is None:
        return None
    return Registered(
        **{field.name: record[field.name] for field in dataclasses.fields(Registered)}
    )


def _train(
    run: Run,
    shards: ShardSet,
    where: Backend,
    watcher: Watcher,
    lease: Lease,
    *,
    register_best: bool,
) -> Trained:
    """The run, which nobody else is playing, to its end or to a stop."""
    run.withdraw_stop()
    experiment, start = run.experiment, newest_nimg(run.storage)
    # In the background, because importing and migrating MLflow takes as long as Ray's start.
    with ThreadPoolExecutor(1) as background:
        waiting = background.submit(open_tracker, where, run)
        if start >= experiment.turns.total_nimg:  # only the end was interrupted
            tracker = waiting.result()
            watcher.begun(run, tracker.url, start)
            outcome = Outcome(start, finished=True)
        else:
            watcher.said("starting Ray and MLflow")
            with connected(experiment.cluster):
                tracker = waiting.result()
                watcher.begun(run, tracker.url, start)
                follower = _Follower(run, tracker, watcher)
                try:
                    outcome = play_on_ray(
                        run,
                        shards,
                        token=lease.token,
                        follow=follower.step,
                        said=watcher.said,
                        begun=lambda: follower.begun,
                        events=Silent(),
                    )
                except KeyboardInterrupt:
                    tracker.finish("KILLED")
                    raise
                except (TrainingError, ConfigError):
                    tracker.finish("FAILED")
                    raise
                follower.last()
    if not outcome.finished:
        tracker.finish("KILLED")
        return Trained(run, outcome.nimg, False, None, where, tracker.url)
    return _complete(run, outcome, tracker, register_best=register_best)


def _complete(run: Run, outcome: Outcome, tracker: Tracker, *, register_best: bool) -> Trained:
    """Registers the best generator and closes the run; safe to do again where it was cut short."""
    registered = None
    best = run.best()
    assert best is not None, "a finished run has been judged at its end"
    judged = [line.time_ms for line in run.journal() if line.nimg == best.card.nimg]
    try:
        tracker.ship(list(run.journal(after=tracker.shipped)))
        tracker.log_best(best.card.scores, best.card.nimg, time_ms=(judged or [now_ms()])[0])
        run.lineage = Run.at(run.storage).lineage  # the workers noted there what they play on
        if register_best:
            registered = register(tracker.where, run, best, mlflow_run_id=tracker.run_id)
            tracker.tag({"forger.model_version": registered.uri})
        tracker.finish("FINISHED")
    except Exception as error:  # the training itself is safe in the run's folder
        raise TrainingError(
            f"{run.name} is trained, but MLflow did not take it: {type(error).__name__}: {error}"
        ) from error
    result = {
        "nimg": outcome.nimg,
        "best": best.folder,
        "registered": registered and dataclasses.asdict(registered),
        "mlflow_url": tracker.url,
    }
    run.complete(result)
    return Trained(run, outcome.nimg, True, registered, tracker.where, tracker.url)


class _Follower:
    """Passes on what the workers journal: to the watcher's screen and to MLflow."""

    def __init__(self, run: Run, tracker: Tracker, watcher: Watcher):
        self.run, self.tracker, self.watcher = run, tracker, watcher
        self._seen = max((line.nimg for line in run.journal()), default=-1)
        self._complained = self.ticked = False
        self._waited_sec = 0
        self._since = time.monotonic()

    def follow(self) -> None:
        """Tells what is new; a tracking server that fails is named once, and tried again."""
        for line in self.run.journal(after=self._seen):
            self._seen, self.ticked = line.nimg, True
            self.watcher.ticked(line)
        try:
            self.tracker.ship(list(self.run.journal(after=self.tracker.shipped)))
        except Exception as error:  # whatever tracking does, training goes on
            if not self._complained:
                log.warning("MLflow took no metrics (%s); training goes on, they are kept", error)
            self._complained = True

    def step(self) -> None:
        """Tells what is new, or that nothing has come yet."""
        self.follow()
        self._since = self.patience(self._since)

    @property
    def begun(self) -> bool:
        """Whether there is a tick of this command's, seen on the screen or not yet."""
        return self.ticked or any(True for _ in self.run.journal(after=self._seen))

    def patience(self, since: float) -> float:
        """Says every few seconds that nothing has ticked yet; returns when it last did."""
        if self.ticked or time.monotonic() - since < PATIENCE_SEC:
            return since
        self._waited_sec += PATIENCE_SEC
        self.watcher.said(f"  the workers are starting: {self._waited_sec} s")
        return time.monotonic()

    def last(self) -> None:
        """Tells what is new, and says so where MLflow did not take all of it."""
        self.follow()
        if self.tracker.shipped < self._seen:
            self.watcher.said(
                f"some ticks did not reach MLflow; they are in {self.run.storage.uri}, "
                f"and the next command on this run sends them"
            )


class Silent:
    """stub"""

    def add(self, kind: str, **facts: float | str) -> None:
        """stub"""
        log.warning("event %s %s", kind, facts)

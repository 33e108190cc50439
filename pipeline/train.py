"""Stage: Ray Train around pipeline.play, followed from the driver, ending in a registered
generator.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gan.config import ConfigError, check_sample
from pipeline.backend import Backend, backend
from pipeline.branch import fork_of
from pipeline.checkpoint import newest_nimg
from pipeline.cluster import check_address, connected
from pipeline.data_checks import check_data
from pipeline.dataset import ShardSet, open_shards
from pipeline.events import Events, has_played
from pipeline.experiment import Experiment
from pipeline.extractors import configured_extractor
from pipeline.fits import TrainingError, play_on_ray
from pipeline.folder import Folder
from pipeline.goodput import Goodput, goodput
from pipeline.journal import JournalLine
from pipeline.lease import FOLDER as LEASES
from pipeline.lease import take
from pipeline.play import Outcome
from pipeline.registry import Registered, register
from pipeline.run import RECORD, Best, Run, changes_of_data, free_name, now_ms
from pipeline.shards import verify_shards
from pipeline.shipping import Shipper
from pipeline.storage import StorageError, open_storage
from pipeline.tracking import Tracker

log = logging.getLogger(__name__)

PATIENCE_SEC = 5
LOOK_REMOTE_SEC = 2.0
OPENING_SEC = 60.0  # how long a new run waits for MLflow's first word, beside Ray's start
GOODBYE_SEC = 10.0  # for the end of a run that was stopped or failed


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to."""

    run: Run
    nimg: int
    finished: bool
    registered: Registered | None  # once finished and delivered
    where: Backend
    mlflow_url: str | None
    delivered: bool = True  # whether MLflow took all of it
    goodput: Goodput | None = None


@dataclass(frozen=True, slots=True)
class Watcher:
    """What the stage tells while it works.

    `begun` gets the run, MLflow's address, and the nimg that the run starts from.
    """

    begun: Callable[[Run, str, int], None]
    ticked: Callable[[JournalLine], None]
    said: Callable[[str], None]


def train(
    experiment: Experiment,
    watcher: Watcher,
    *,
    again: bool = False,
    fork: str | None = None,
    register_best: bool = True,
) -> Trained:
    """Trains the experiment's run to its end and registers the best generator.

    A run that is complete is returned as it is, once MLflow has all of it; with `again`, another
    is begun beside it. With `fork` the experiment may differ from the run's: it goes on from the
    run's newest checkpoint as a run of that name ('' for NAME-fork). Without `register_best`
    nothing is registered. On KeyboardInterrupt the workers checkpoint at their next round and the
    run is returned unfinished; a second one gives up at once. Raises ConfigError for the user's
    mistakes, before anything is started, TrainingError where the workers failed for good, and
    StorageError where the driver's own storage did.
    """
    shards = _checked(experiment)
    runs, name = open_storage(experiment.cluster.storage), experiment.name
    if again:
        name = free_name(runs, name)
    begun = fork is None and runs.exists(f"{name}/{RECORD}")
    where = backend(experiment.cluster.storage, must_answer=not begun)
    check_address()
    if fork is not None:
        run = fork_of(name, fork or f"{name}-fork", experiment, shards)
    else:
        run = Run.open(name, experiment, shards)
    return _to_the_end(run, shards, where, watcher, new=not begun, register_best=register_best)


def resume(storage: str, name: str, watcher: Watcher) -> Trained:
    """Goes on with the run `name` below `storage` by its own record: trains it to its end, or
    delivers to MLflow what an outage kept from it.

    Raises ConfigError where there is none, or where it is a search's trial; else as `train`.
    """
    run = Run.at(open_storage(storage).below(name))
    if run.lineage.get("search"):
        search = run.lineage["search"]["name"]
        raise ConfigError(
            [f"{name} is a trial of the search {search}, which `forger search` goes on with"]
        )
    run.experiment = run.experiment.replace("cluster.storage", storage)
    shards = _checked(run.experiment)
    changes = changes_of_data(run, shards)
    if changes:
        raise ConfigError(changes)
    where = backend(storage, must_answer=False)
    check_address()
    return _to_the_end(run, shards, where, watcher, new=False, register_best=True)


def _checked(experiment: Experiment) -> ShardSet:
    """The experiment's data, once all that can be known to fail later was looked at."""
    shards = open_shards(experiment.data.shards)
    check_sample(experiment.game, shards.sample)
    check_data(experiment.data, shards)
    configured_extractor(experiment.evaluate, shards.sample.shape)
    verify_shards(shards)
    return shards


def _to_the_end(
    run: Run, shards: ShardSet, where: Backend, watcher: Watcher, *, new: bool, register_best: bool
) -> Trained:
    """The run to its end or to a stop, by this command alone."""
    result = run.result
    if result is not None and result.get("delivered", True):
        registered = _registered(result["registered"])
        return Trained(run, result["nimg"], True, registered, where, result["mlflow_url"])

    def journalled() -> dict[str, Any]:
        return {"journalled": run.journalled_nimg}

    with take(run.storage, who=f"forger train {run.name}", note=journalled) as lease:
        run.storage.sweep(but=LEASES)  # others may be asking for the lease
        command = _Command(run, shards, where, watcher, token=lease.token, fence=lease.check)
        try:
            if result is not None:
                return command.complete(register_best=register_best)
            return command.train(new=new, register_best=register_best)
        finally:
            command.shipper.abandon()


def _registered(record: dict[str, Any] | None) -> Registered | None:
    """The version that a complete run's result names, if any."""
    if record is None:
        return None
    return Registered(
        **{field.name: record[field.name] for field in dataclasses.fields(Registered)}
    )


class _Command:
    """One command's work on a run that nobody else works on. `token` is its lease's."""

    def __init__(
        self,
        run: Run,
        shards: ShardSet,
        where: Backend,
        watcher: Watcher,
        *,
        token: int,
        fence: Callable[[], None],
    ):
        self.run, self.shards, self.where, self.watcher = run, shards, where, watcher
        self.token, self.fence = token, fence
        self.shipper = Shipper(where, run, fence=fence, said=watcher.said)

    def train(self, *, new: bool, register_best: bool) -> Trained:
        """Plays to the end, or to a stop."""
        run, start = self.run, newest_nimg(self.run.storage)
        run.withdraw_stop()
        if start < run.experiment.turns.total_nimg:
            outcome = self._play(start, new=new)
            if not outcome.finished:
                delivered = self._end("KILLED")
                return Trained(
                    run, outcome.nimg, False, None, self.where, self.shipper.url, delivered
                )
        else:  # only the end was interrupted
            self.watcher.begun(run, self.shipper.url, start)
        return self.complete(register_best=register_best)

    def _play(self, start: int, *, new: bool) -> Outcome:
        run, watcher = self.run, self.watcher
        events = Events(run.storage, self.token)
        events.add("began")
        watcher.said("starting Ray and MLflow")
        follower: _Follower | None = None
        try:
            with connected(run.experiment.cluster):
                if new:  # nothing is lost yet: better no run than one that nobody can look at
                    self.shipper.wait_for_first_answer(OPENING_SEC)
                watcher.begun(run, self.shipper.url, start)
                following = follower = _Follower(run, self.shipper, watcher)
                outcome = play_on_ray(
                    run,
                    self.shards,
                    token=self.token,
                    follow=follower.follow,
                    said=watcher.said,
                    begun=lambda: following.begun or has_played(run.storage, token=self.token),
                    events=events,
                )
                follower.look()
        except KeyboardInterrupt:
            events.add("stopped", nimg=newest_nimg(run.storage))
            self._end("KILLED")
            raise
        except (TrainingError, ConfigError, StorageError) as error:
            events.add(
                "failed",
                why=str(error),
                diverged=int(follower is not None and isinstance(error, ConfigError)),
            )
            self._end("FAILED")
            raise
        events.add("finished" if outcome.finished else "stopped", nimg=outcome.nimg)
        return outcome

    def _end(self, status: str) -> bool:
        """Tells MLflow how it ended, and says so where it did not take all of it."""
        delivered = self.shipper.finish(status, deadline_sec=GOODBYE_SEC)
        if not delivered:
            self.watcher.said(
                f"some ticks did not reach MLflow; they are in {self.run.storage.uri}, "
                f"and the next command on this run sends them"
            )
        return delivered

    def complete(self, *, register_best: bool) -> Trained:
        """Delivers all, registers the best generator and closes the run; safe to do again where
        it was cut short.
        """
        run, nimg = self.run, newest_nimg(self.run.storage)  # a last round may go past the total
        best, spent = run.best(), goodput(run)
        assert best is not None, "a finished run has been judged at its end"
        run.lineage = Run.at(run.storage).lineage  # the workers noted there what they play on
        found: list[Registered] = []

        def last(tracker: Tracker) -> None:
            self._log_end(tracker, best, spent)
            if register_best:
                found[:] = [register(self.where, run, best, mlflow_run_id=tracker.run_id)]
                tracker.tag({"forger.model_version": found[0].uri})

        try:
            delivered = self.shipper.finish("FINISHED", last=last)
        except Exception as error:  # the training itself is safe in the run's folder
            raise TrainingError(
                f"{run.name} is trained, but its generator could not be registered: "
                f"{type(error).__name__}: {error}"
            ) from error
        registered = found[0] if delivered and found else None
        self.fence()
        run.complete(
            {
                "nimg": nimg,
                "best": best.folder,
                "registered": registered and dataclasses.asdict(registered),
                "mlflow_url": self.shipper.url,
                "delivered": delivered,
                "goodput": spent.metrics(),
            }
        )
        return Trained(run, nimg, True, registered, self.where, self.shipper.url, delivered, spent)

    def _log_end(self, tracker: Tracker, best: Best, spent: Goodput) -> None:
        """What only the end knows; at times of the run's own, so that twice is once."""
        times = {line.nimg: line.time_ms for line in self.run.journal()}
        nimg, end_nimg = best.card.nimg, newest_nimg(self.run.storage)
        newest_ms = max(times.values(), default=now_ms())
        tracker.log_best(best.card.scores, nimg, time_ms=times.get(nimg, newest_ms))
        if spent.all_sec > 0:
            tracker.log_at(spent.metrics(), end_nimg, time_ms=newest_ms)


class _Follower:
    """Passes on what the workers journal and leave to be said: to the screen, and to MLflow by a
    nudge.
    """

    def __init__(self, run: Run, shipper: Shipper, watcher: Watcher):
        self.run, self.shipper, self.watcher = run, shipper, watcher
        self._seen = run.journalled_nimg
        self._read = {name for name, _ in run.told()}  # by name: writers' clocks may differ
        self._waited_sec, self._since = 0, time.monotonic()
        self._complained = self.ticked = False
        self._looked, self._rest_sec = 0.0, 0.0
        if not isinstance(run.storage, Folder):  # a look costs requests there
            self._rest_sec = LOOK_REMOTE_SEC

    def follow(self) -> None:
        """Tells what is new, or that nothing has come yet."""
        if time.monotonic() - self._looked >= self._rest_sec:
            self.look()
        if not self.ticked and time.monotonic() - self._since >= PATIENCE_SEC:
            self._since = time.monotonic()
            self._waited_sec += PATIENCE_SEC
            self.watcher.said(f"  the workers are starting: {self._waited_sec} s")

    def look(self) -> None:
        """Tells what is new. Storage that fails is named once: the workers may see it better."""
        self._looked = time.monotonic()
        try:
            for name, text in self.run.told(but=self._read):
                self._read.add(name)
                self.watcher.said(text)
            for line in self.run.journal(after=self._seen):
                self._seen, self.ticked = line.nimg, True
                self.watcher.ticked(line)
        except StorageError as error:
            if not self._complained:
                log.warning("the run cannot be looked at (%s); training goes on", error)
            self._complained = True
        self.shipper.nudge()

    @property
    def begun(self) -> bool:
        """Whether there is a tick of this command's, seen on the screen or not yet."""
        return self.ticked or any(True for _ in self.run.journal(after=self._seen))

"""A run on Ray Train, attempt after attempt: lost workers, nodes that come and go, hangs, stops.

Ray places the workers and joins them; when to begin again, with how many and after how long is
decided here, because every new attempt takes up the newest checkpoint: one that waits for it, as
growing or leaving a node does, loses nothing.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from gan.config import ConfigError
from pipeline.checkpoint import newest_nimg
from pipeline.cluster import draining_nodes, gives_gpus, room, trainer
from pipeline.dataset import ShardSet
from pipeline.failures import Budget, Failure, Kind, first_failure
from pipeline.interrupts import Interrupts
from pipeline.play import Outcome
from pipeline.run import Run
from pipeline.worker import job_of, stacks_of, work

log = logging.getLogger(__name__)

POLL_SEC = 0.5
LOOK_SEC = 3.0  # between two looks at the cluster's nodes
SETTLE_SEC = 5.0  # how long Ray may take to see that a node is gone
WAITING_SEC = 30.0  # between two lines that say so


class TrainingError(Exception):
    """The run cannot go on; the message holds the error of the worker that failed first."""


class Events(Protocol):
    """Who keeps account of what happened when."""

    def add(self, kind: str, **facts: float | str) -> None:
        """Notes that it happened now."""
        ...


def play_on_ray(
    run: Run,
    shards: ShardSet,
    *,
    token: int,
    follow: Callable[[], None],
    said: Callable[[str], None],
    begun: Callable[[], bool],
    events: Events,
) -> Outcome:
    """Plays the run on the cluster's workers to its end, or to a stop by Ctrl-C or SIGTERM.

    `follow` is called twice a second; `begun` says whether there is something to save yet. Raises
    TrainingError where the workers failed for good, ConfigError where the game diverged, and
    KeyboardInterrupt at a second Ctrl-C, or at one before the first tick.
    """
    with Interrupts() as interrupts:
        return _Attempts(run, shards, token, follow, said, begun, events, interrupts).play()


class _Attempts:
    """The attempts of one command."""

    def __init__(
        self,
        run: Run,
        shards: ShardSet,
        token: int,
        follow: Callable[[], None],
        said: Callable[[str], None],
        begun: Callable[[], bool],
        events: Events,
        interrupts: Interrupts,
    ):
        self.run, self.shards, self.token = run, shards, token
        self.follow, self.said, self.begun, self.events = follow, said, begun, events
        self.interrupts, self.stopping = interrupts, False
        self.cluster = run.experiment.cluster
        self.budget = Budget(self.cluster.max_failures, nimg=newest_nimg(run.storage))
        self.dice = random.Random()
        self.left = frozenset[str]()  # draining nodes that were seen to already

    def play(self) -> Outcome:
        gives_gpus(self.cluster)  # says what is missing from the start
        number = 0
        while True:
            number += 1
            workers = self._wait_for_room()
            if workers == 0:
                return Outcome(newest_nimg(self.run.storage), finished=False)
            self.events.add("attempt", number=number, workers=workers)
            ended = self._attempt(workers, number)
            self.follow()
            if "error" in ended:
                failure = first_failure(ended["error"])
                self._failed(failure, ended["error"], workers=workers, number=number)
                if self.stopping:
                    return Outcome(newest_nimg(self.run.storage), finished=False)
            elif "diverged" in ended["value"]:
                raise ConfigError([ended["value"]["diverged"]])
            else:
                outcome = Outcome(**ended["value"])
                if outcome.finished or self.stopping:
                    return outcome
            self.run.withdraw_stop()

    def _wait_for_room(self) -> int:
        """As many workers as there is room for; 0 where the wait was ended by Ctrl-C."""
        told = 0.0
        while (found := room(self.cluster)) < self.cluster.min_workers:
            if time.monotonic() - told > WAITING_SEC:
                told = time.monotonic()
                self.said(
                    f"waiting for nodes: there is room for {found} workers of at least "
                    f"{self.cluster.min_workers}"
                )
            self._step()
            if self.stopping:
                return 0
        return found

    def _attempt(self, workers: int, number: int) -> dict[str, Any]:
        """One fit, in a thread, so that this one can follow it and hear signals."""
        job = job_of(self.run, self.shards, token=self.token, attempt=number)
        folder = tempfile.mkdtemp(prefix="forger-ray-")
        fitting = trainer(
            work, job, cluster=self.cluster, workers=workers, name=self.run.name, folder=folder
        )
        ended: dict[str, Any] = {}
        over = threading.Event()  # not Thread.join, which an interrupt leaves believing it is over

        def fit() -> None:
            try:
                ended["value"] = fitting.fit().return_value
            except BaseException as error:
                ended["error"] = error
            over.set()

        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        looked = time.monotonic()
        while not over.is_set():
            self._step(over)
            if time.monotonic() - looked > LOOK_SEC:
                looked = time.monotonic()
                self._look_at_nodes(workers)
        shutil.rmtree(folder, ignore_errors=True)
        return ended

    def _step(self, over: threading.Event | None = None) -> None:
        """A moment of waiting, with eyes open."""
        self.follow()
        if over is None:
            time.sleep(POLL_SEC)
        else:
            over.wait(POLL_SEC)
        if self.interrupts.heard and not self.stopping:
            if not self.begun():  # before the first tick there is nothing to save
                raise KeyboardInterrupt
            self.stopping = True
            self.run.request_stop()
            self.said("stopping, with a checkpoint (again: at once, without)")

    def _look_at_nodes(self, workers: int) -> None:
        """Has the workers stop, with a checkpoint, where others should take over."""
        leaving = draining_nodes() - self.left
        if leaving:
            self.left |= leaving
            self._regroup(f"{len(leaving)} node(s) were told to go")
        elif workers < self.cluster.max_workers and room(self.cluster) > workers:
            self._regroup(f"there is room for {room(self.cluster)} workers")

    def _regroup(self, why: str) -> None:
        self.said(f"{why}: a checkpoint, then on with what is there")
        self.events.add("regroup", why=why)
        self.run.request_stop()

    def _failed(
        self, failure: Failure, error: BaseException, *, workers: int, number: int
    ) -> None:
        """Says what happened, and waits before the next attempt. Raises where there is none."""
        hung = stacks_of(self.run, token=self.token, attempt=number)
        reason = str(failure)
        if hung:
            reason = f"no progress for {self.cluster.hang_sec:g} s: the stacks are in {hung[0]}"
        self.events.add("lost", why=reason)
        if self.stopping:
            return
        if failure.kind in (Kind.DIED, Kind.FROZEN, Kind.COLLECTIVE) and self._elastic:
            self._settle(workers)
        lost_node = room(self.cluster) < workers
        again = self.budget.allows(failure, nimg=newest_nimg(self.run.storage))
        if not again and not (lost_node and failure.kind is not Kind.FINAL):
            raise TrainingError(reason) from error
        pause = 0.0 if lost_node else self.budget.wait_sec(self.dice)
        after = f" after {pause:.0f} s" if pause >= 1 else ""
        self.said(f"{reason}; again{after}, {self.budget.left} more without progress allowed")
        until = time.monotonic() + pause
        while time.monotonic() < until and not self.stopping:
            self._step()

    def _settle(self, workers: int) -> None:
        """Where a worker's node went with it, Ray needs a moment to see it."""
        until = time.monotonic() + SETTLE_SEC
        while time.monotonic() < until and not self.stopping and room(self.cluster) >= workers:
            self._step()

    @property
    def _elastic(self) -> bool:
        return self.cluster.min_workers < self.cluster.max_workers

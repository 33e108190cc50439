"""A run on Ray Train, attempt after attempt: lost workers, nodes that come and go, hangs, stops.

Ray places the workers and joins them; when to begin again, with how many and after how long is
decided here, because every new attempt takes up the newest checkpoint: one that waits for it, as
growing or leaving a node does, loses nothing.
"""

from __future__ import annotations

import itertools
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
from pipeline.cluster import gives_gpus, trainer
from pipeline.dataset import ShardSet
from pipeline.failures import Budget, Failure, Kind, first_failure, with_stacks
from pipeline.folder import Folder
from pipeline.hang import stacks_in
from pipeline.interrupts import Interrupts
from pipeline.nodes import (
    Process,
    ask_for_workers,
    clear_away,
    draining_nodes,
    free_reservations,
    our_workers,
    room,
    silent_nodes,
    staying_nodes,
)
from pipeline.play import Outcome
from pipeline.run import Run
from pipeline.storage import StorageError
from pipeline.worker import HANGS, job_of, stacks_folder, stacks_prefix, work

log = logging.getLogger(__name__)

POLL_SEC = 0.5
LOOK_SEC = 1.0  # between two looks at the cluster's nodes
ROOMY_LOOKS = 3  # in a row that find room for more, before the run grows
SETTLE_SEC = 10.0  # until what an attempt held is free again
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
    KeyboardInterrupt at a second Ctrl-C, or at one before the workers play.
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
        self.without = frozenset[str]()  # nodes that go, or do not answer
        self.left = frozenset[str]()  # draining nodes that were seen to already
        self.crew: list[Process] = []  # the workers of the attempt
        self.regrouping, self.roomy = False, 0

    def play(self) -> Outcome:
        self.gpus = gives_gpus(self.cluster)  # says what is missing, from the start
        self.run.withdraw_stop()  # what an earlier command was asked is done
        stacks_in(stacks_folder(self.run.storage.uri))  # a killed command left empty files
        ask_for_workers(self.cluster, self.cluster.max_workers, gpus=self.gpus)
        try:
            return self._play()
        finally:
            self._tidy()
            ask_for_workers(self.cluster, 0, gpus=self.gpus)

    def _tidy(self) -> None:
        try:
            self.run.withdraw_stop()
            self.run.sweep_after_workers()
        except StorageError as error:  # what ended the run is worth more
            log.warning("the run's folder could not be tidied: %s", error)

    def _play(self) -> Outcome:
        for number in itertools.count(1):
            workers = self._wait_for_room()
            if workers == 0:
                break
            self.run.sweep_after_workers()
            self.events.add("attempt", number=number, workers=workers)
            ended = self._attempt(workers, number)
            self.follow()
            if "error" in ended:
                self._failed(ended["error"], number=number)
            elif "diverged" in ended["value"]:
                raise ConfigError([ended["value"]["diverged"]])
            else:
                outcome = Outcome(**ended["value"])
                if outcome.finished or not self.regrouping:
                    return outcome
            if self.stopping:
                break
            self.run.withdraw_stop()
        return Outcome(newest_nimg(self.run.storage), finished=False)

    def _wait_for_room(self) -> int:
        """As many workers as there is room for; 0 where the wait was ended by Ctrl-C."""
        began = time.monotonic()
        told, most = began - WAITING_SEC + SETTLE_SEC, self.cluster.max_workers
        while not self.stopping:
            self.without = draining_nodes() | silent_nodes()
            asked = {"gpus": self.gpus, "without": self.without}
            free, whole = room(self.cluster, **asked), room(self.cluster, **asked, free=False)
            # What the last attempt held comes free in a moment; what is others' does not.
            settled = free >= min(whole, most) or time.monotonic() - began > SETTLE_SEC
            if free >= self.cluster.min_workers and settled:
                return free
            if time.monotonic() - told > WAITING_SEC:
                told = time.monotonic()
                free_reservations()
                least = self.cluster.min_workers
                self.said(f"waiting for nodes: there is room for {free} of at least {least}")
            self._step()
        return 0

    def _attempt(self, workers: int, number: int) -> dict[str, Any]:
        """One fit, in a thread, so that this one can follow it and hear signals."""
        job = job_of(self.run, self.shards, token=self.token, attempt=number)
        folder = tempfile.mkdtemp(prefix="forger-ray-")
        fitting = trainer(
            work,
            job,
            cluster=self.cluster,
            name=self.run.name,
            folder=folder,
            workers=workers,
            gpus=self.gpus,
            without=self.without,
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
        self.crew, self.regrouping, self.roomy = [], False, 0
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
            if not self.begun():
                raise KeyboardInterrupt
            self.stopping = True
            self.run.request_stop()
            self.said("stopping, with a checkpoint (again: at once, without)")

    def _look_at_nodes(self, workers: int) -> None:
        """Has the workers stop, with a checkpoint, where others should take over."""
        if len(self.crew) < workers:
            self.crew = our_workers() or self.crew
        if self.regrouping or self.stopping or len(self.crew) < workers:
            return
        leaving = draining_nodes() & {worker.node for worker in self.crew}
        if leaving - self.left:
            self.left |= leaving
            self._regroup(f"{len(leaving)} of the run's nodes must go")
        elif workers < self.cluster.max_workers:
            more = room(self.cluster, gpus=self.gpus, without=draining_nodes() | self.left)
            self.roomy = self.roomy + 1 if more else 0
            if self.roomy >= ROOMY_LOOKS:  # a node that stays, not a gap between others' tasks
                self._regroup(f"there is room for {more} more")

    def _regroup(self, why: str) -> None:
        self.said(f"{why}: a checkpoint, then on with the nodes that are there")
        self.events.add("regroup", why=why)
        self.regrouping = True
        self.run.request_stop()

    def _failed(self, error: BaseException, *, number: int) -> None:
        """Says what happened, and waits before the next attempt. Raises where there is none."""
        failure = first_failure(error)
        reason, stacks = self._reason(failure, number=number)
        # Before the stacks that it names, and before Ray is asked for anything: where this
        # machine's raylet died, Ray may end this process at any moment.
        self.events.add("lost", why=reason)
        self._keep(stacks)
        free_reservations()
        if failure.kind is Kind.FINAL:
            raise TrainingError(reason) from error
        if self.stopping:
            kimg = newest_nimg(self.run.storage) / 1000
            self.said(f"{reason}; no checkpoint came of the stop, the last is at {kimg:.1f} kimg")
            return
        gone = draining_nodes() | silent_nodes()
        staying = staying_nodes(gone)
        lost = {worker.node for worker in self.crew} - staying
        if lost:  # with its node, or because of it: nobody's fault
            self.said(f"{reason}; {len(lost)} of the run's nodes left; on without")
            return
        if not self.budget.allows(failure, nimg=newest_nimg(self.run.storage)):
            raise TrainingError(reason) from error
        pause = self.budget.wait_sec(self.dice)
        after = f" after {pause:.0f} s" if pause >= 1 else ""
        self.said(f"{reason}; again{after}, {self.budget.left} more without progress allowed")
        until = time.monotonic() + pause
        while time.monotonic() < until and not self.stopping:
            self._step()

    def _reason(self, failure: Failure, *, number: int) -> tuple[str, dict[str, str]]:
        """Why the attempt failed, in one line, and the stacks that its workers left; nothing of
        the attempt runs on any more.
        """
        local = stacks_folder(self.run.storage.uri)
        left = clear_away(self.crew, folder=local, prefix=stacks_prefix(self.token, number))
        kept, hang_sec = f"{self.run.storage.uri}/{HANGS}", self.cluster.hang_sec
        reason = with_stacks(failure, left.stacks, hang_sec=hang_sec, folder=kept)
        for frozen in left.frozen:
            reason = f"process {frozen.pid} on {frozen.address} was frozen; {reason}"
        return reason, left.stacks

    def _keep(self, stacks: dict[str, str]) -> None:
        """Puts the stacks into the run's own folder, where that is elsewhere."""
        if isinstance(self.run.storage, Folder):  # they were written there
            return
        try:
            for name, text in stacks.items():
                self.run.storage.write(f"{HANGS}/{name}", text.encode())
        except StorageError as error:  # the run itself may go on
            log.warning("stacks of workers could not be kept: %s", error)

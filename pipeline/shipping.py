"""A run's journal on its way to MLflow, in a thread that nothing else waits for.

Whatever MLflow does, be it away, slow or out of order, the driver's loop and the workers go on.
What it has not taken is in the run's folder, and goes to it when it answers again: in order, each
point once. What is left at the end is delivered by `forger resume`.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gan.config import ConfigError
from pipeline.backend import Backend
from pipeline.lease import FencedError
from pipeline.rollbacks import rollbacks
from pipeline.run import Run
from pipeline.tracking import Tracker, open_tracker

log = logging.getLogger(__name__)

POLL_SEC = 2.0  # without a nudge
LONGEST_PAUSE_SEC = 30.0
LINES_AT_ONCE = 20  # what was taken is noted after each of them


@dataclass(frozen=True, slots=True)
class _End:
    """How a run's end is to be told."""

    status: str
    last: Callable[[Tracker], None]


class Shipper:
    """One run's way to MLflow. One a driver.

    `said` hears when MLflow stops taking anything, and when it does again; it is called from the
    shipping thread. `fence` raises FencedError where this process must write no more.
    """

    def __init__(
        self,
        where: Backend,
        run: Run,
        *,
        parent: str | None = None,
        fence: Callable[[], None] = lambda: None,
        said: Callable[[str], None] = log.warning,
    ):
        self.where, self.run = where, run
        self.trouble: Exception | None = None  # why MLflow takes nothing at the moment
        self._parent, self._fence, self._said = parent, fence, said
        self._tracker: Tracker | None = None
        self._told_rollbacks = 0
        self._end: _End | None = None
        self._fatal: Exception | None = None  # of `last`, and none of MLflow's
        self._closing = False  # `last` is at work
        self._wake, self._gives_up = threading.Event(), threading.Event()
        self._tried, self._over = threading.Event(), threading.Event()
        self._delivered = False
        threading.Thread(target=self._work, name="shipping", daemon=True).start()

    @property
    def url(self) -> str:
        """What to open in a browser; MLflow's address as long as the run is not there."""
        return self._tracker.url if self._tracker is not None else self.where.shown

    @property
    def shipped_nimg(self) -> int:
        """The last tick that MLflow has, as far as is known."""
        return self._tracker.shipped if self._tracker is not None else -1

    def nudge(self) -> None:
        """Says that there may be something new. Returns at once."""
        self._wake.set()

    def wait_for_first_answer(self, timeout_sec: float) -> None:
        """Waits for the first try to reach MLflow. Raises what it said where it was no."""
        self._tried.wait(timeout_sec)
        if self._tracker is None and self.trouble is not None:
            raise self.trouble

    def finish(
        self,
        status: str,
        *,
        deadline_sec: float = 30,
        last: Callable[[Tracker], None] = lambda tracker: None,
    ) -> bool:
        """Delivers what is there, calls `last`, and ends MLflow's run as FINISHED, FAILED or
        KILLED (stopped, can be resumed). Returns whether MLflow took all of it.

        It gives up after `deadline_sec`, but lets a `last` that has begun come to its end. `last`
        is called again where MLflow failed in it, so it must be something that may be done twice.
        FINISHED releases what a rollback might still have taken back. Raises what `last` raised,
        where that is for people to see.
        """
        self._end = _End(status, last)
        self._wake.set()
        deadline = time.monotonic() + deadline_sec
        while not self._over.wait(0.05):
            if time.monotonic() > deadline and not self._closing:
                break
        self.abandon()
        if self._fatal is not None:
            raise self._fatal
        return self._delivered

    def abandon(self) -> None:
        """Ships nothing more, but for what is on its way. Returns at once."""
        self._gives_up.set()
        self._wake.set()

    def _work(self) -> None:
        pause_sec = 0.0
        try:
            while not self._gives_up.is_set():
                ended = self._end  # asked first: all that it covers is in the journal by then
                try:
                    self._ship(ended)
                    if ended is not None:
                        self._close(ended)
                        return
                    pause_sec = 0.0
                except FencedError as error:
                    log.info("nothing more is shipped: %s", error)
                    return
                except Exception as error:  # whatever tracking does, training goes on
                    self._complain(error)
                    pause_sec = min(LONGEST_PAUSE_SEC, max(0.5, 2 * pause_sec))
                finally:
                    self._tried.set()
                if self._fatal is not None:
                    return
                self._rest(pause_sec)
        finally:
            self._over.set()

    def _rest(self, pause_sec: float) -> None:
        """Waits for something to do; after a failure, for its pause, or for the end."""
        if pause_sec == 0:
            self._wake.wait(POLL_SEC)
            self._wake.clear()
            return
        ending = self._end is not None
        if ending:  # there is a deadline now
            pause_sec = min(pause_sec, 2.0)
        until = time.monotonic() + pause_sec * random.uniform(0.5, 1)
        while time.monotonic() < until and not self._gives_up.is_set():
            if self._end is not None and not ending:
                return
            time.sleep(0.1)

    def _ship(self, ended: _End | None) -> None:
        self._fence()
        if self._tracker is None:
            self._tracker = open_tracker(self.where, self.run, parent=self._parent)
            self._recovered()
        tracker, run = self._tracker, self.run
        whole = ended is not None and ended.status == "FINISHED"
        until = math.inf if whole else run.released_nimg  # a last round may go past the total
        lines = [line for line in run.journal(after=tracker.shipped) if line.nimg <= until]
        for start in range(0, len(lines), LINES_AT_ONCE):
            self._fence()
            tracker.ship(lines[start : start + LINES_AT_ONCE])
            self._recovered()
        given_up = rollbacks(run.storage)
        if len(given_up) > self._told_rollbacks:
            tracker.log_rollbacks(given_up)
            self._told_rollbacks = len(given_up)

    def _close(self, ended: _End) -> None:
        tracker = self._tracker
        assert tracker is not None
        self._closing = True
        try:
            try:
                ended.last(tracker)
            except Exception as error:
                if not is_of_mlflow(error) and self._answers(tracker):
                    self._fatal = error
                    return
                raise
            self._fence()
            tracker.end(ended.status)
            self._recovered()
            self._delivered = True
        finally:
            self._closing = False

    def _answers(self, tracker: Tracker) -> bool:
        try:
            tracker.client.get_run(tracker.run_id)
        except Exception:
            return False
        return True

    def _complain(self, error: Exception) -> None:
        if self.trouble is None:
            reason = _short(error)
            self._said(f"MLflow takes nothing ({reason}); training goes on, all of it is kept")
        self.trouble = error

    def _recovered(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            self._said("MLflow takes what it missed again")


def is_of_mlflow(error: Exception) -> bool:
    """Whether an error is MLflow's or the network's, so that a later try may do better."""
    if isinstance(error, (OSError, ConfigError)):  # requests' errors are OSErrors
        return True
    return any(
        kind.__module__.split(".")[0]
        in ("mlflow", "requests", "urllib3", "sqlalchemy", "botocore")
        for kind in type(error).__mro__
    )


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."

"""One run under its faults: started, watched, broken, started again until it is over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import psutil

from tests.chaos import processes
from tests.chaos.schedule import Plan, Planned
from tests.chaos.stand import CannotBreak, Stand

POLL_SEC = 0.1
JITTER_SEC = 0.5  # a fault waits up to so long after its tick, so that it falls anywhere
SECOND_COMMAND_SEC = 120
STRAYS_SEC = 30
SILENCE_SEC = 2.0  # without a tick: nobody plays
NOTICED_SEC = 20  # a fault that silences the run does so by then


class Arm(Protocol):
    """A run as the scene sees it, of the product or of the textbook."""

    stand: Stand
    name: str
    arm: str
    total_nimg: int
    max_starts: int

    @property
    def command(self) -> list[str]: ...
    def environment(self) -> dict[str, str]: ...
    def progress(self) -> int: ...
    def is_complete(self) -> bool: ...
    def checkpoint_nimg(self) -> int: ...
    def damage(self, how: str) -> bool: ...
    def resumptions(self) -> list[tuple[float, int]]: ...
    def weights(self) -> dict[str, Any]: ...
    def verdict(self, twin: Any) -> list[str]: ...


@dataclass(slots=True)
class Struck:
    """What became of one fault."""

    kind: str
    run: str
    nimg: int  # journalled when it struck
    lost_nimg: int = 0  # journalled past the newest checkpoint, so played again
    recovered_sec: float | None = None  # until the run was further than it had been
    skipped: str = ""  # why it could not be injected
    wrong: list[str] = field(default_factory=list)


class Scene:
    """Plays one plan; the faults act through it."""

    def __init__(self, arm: Arm, plan: Plan, *, patience_sec: float):
        self.arm, self.plan, self.stand = arm, plan, arm.stand
        self.patience_sec = patience_sec
        self.struck: list[Struck] = []
        self.wrong: list[str] = []
        self.starts = 0
        self.over = False
        self.ticks: list[tuple[float, int]] = []  # when the run was seen to be how far
        self.moments: list[float] = []  # of each of `struck`
        self._started = 0.0
        self.said: list[str] = []
        self._before = {p.pid for p in processes.family()}
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._log = (arm.stand.folder / "commands" / arm.name / "output.log").open("ab")
        self.others: list[tuple[subprocess.Popen, float, Callable[[int], str | None]]] = []

    # --- for the faults -------------------------------------------------------------------------

    def start(self) -> subprocess.Popen:
        """Types the run's command; its output goes to the run's log."""
        self._log.write(
            f"\n--- {time.strftime('%H:%M:%S')} {' '.join(self.arm.command)}\n".encode()
        )
        self._log.flush()
        started = subprocess.Popen(
            self.arm.command,
            cwd=self.stand.folder / "commands" / self.arm.name,
            env=self.arm.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        processes.WAITED_FOR.add(started.pid)
        return started

    def add_other(
        self, process: subprocess.Popen, seconds: float, judge: Callable[[int], str | None]
    ) -> None:
        """Looks after a command beside the run's own: it must end within so many seconds, and
        `judge` says what is wrong with its exit code.
        """
        self.others.append((process, time.monotonic() + seconds, judge))

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Returns once `done` says so. Raises CannotBreak where it never does."""
        self._once(lambda: [True] if done() else [], 1, what)

    def say(self, text: str) -> None:
        """Into the run's log."""
        self._log.write(f"--- {time.strftime('%H:%M:%S')} chaos: {text}\n".encode())
        self._log.flush()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Does something in so many seconds, or when the scene ends."""
        self._later.append((time.monotonic() + seconds, act))

    @property
    def players(self) -> list[psutil.Process]:
        """The processes of our family that this run, or the nodes, brought."""
        return processes.family()

    def ranks(self, count: int = 1) -> list[psutil.Process]:
        """The workers, rank 0 first, once there are `count`. Raises CannotBreak for none."""
        return self._once(lambda: processes.ranks(self.players), count, "workers")

    def one(self, words: str) -> psutil.Process:
        """The newest process with these words in its command line."""
        found = self._once(lambda: processes.called(words, self.players), 1, words)
        return max(found, key=lambda p: p.pid)

    def _once(self, look: Callable[[], list], count: int, what: str) -> list:
        deadline = time.monotonic() + self.patience_sec / 4
        while time.monotonic() < deadline:
            if len(found := look()) >= count:
                return found
            self._tend()
            time.sleep(POLL_SEC)
        raise CannotBreak(f"there were no {what} to strike")

    # --- the play -------------------------------------------------------------------------------

    def play(self) -> None:
        """To the run's end. What went wrong is in `wrong` and in each of `struck`."""
        waiting = list(self.plan.faults)
        deadline = time.monotonic() + self.patience_sec
        self.command = self.start()
        self.starts = 1
        try:
            while True:
                if time.monotonic() > deadline:
                    self.wrong.append(f"not over after {self.patience_sec:.0f} s")
                    break
                self._tend()
                nimg = self.arm.progress()
                self._note(nimg)
                while waiting and nimg >= waiting[0].at * self.arm.total_nimg:
                    self._strike(waiting.pop(0))
                if self.command.poll() is not None and not self._go_on():
                    break
                time.sleep(POLL_SEC)
        finally:
            self._end()
        self._settle()
        for planned in waiting:
            self.struck.append(
                Struck(planned.kind, self.plan.name, 0, skipped="the run was over before")
            )

    def _go_on(self) -> bool:
        """After the command ended: starts it again where the run is not over."""
        self.say(f"the command ended with {self.command.returncode}")
        if self.arm.is_complete():
            self._note(self.arm.total_nimg + 1)
            return False
        if self.starts == self.arm.max_starts:
            self.wrong.append(f"not over after {self.starts} starts")
            return False
        if self.starts > 2 and time.monotonic() - self._started < 30:
            time.sleep(2)  # a command that is refused again and again is not asked at once
        self.command = self.start()
        self.starts += 1
        self._started = time.monotonic()
        return True

    def _strike(self, planned: Planned) -> None:
        from tests.chaos.faults import FAULTS

        dice = random.Random(planned.dice)
        time.sleep(dice.uniform(0, JITTER_SEC))
        nimg = self.arm.progress()
        self._note(nimg)
        one = Struck(planned.kind, self.plan.name, nimg)
        self.struck.append(one)
        self.moments.append(time.time())
        fault = FAULTS[planned.kind]
        if self.arm.arm not in fault.arms:
            one.skipped = "not for this arm"
            return
        self.say(f"{planned.kind} at {nimg} images")
        try:
            fault.inject(self, dice)
        except CannotBreak as error:
            one.skipped = str(error)
            self.say(f"skipped: {error}")
            return
        # Read after the blow: what was saved in the last moment before it counts as saved.
        if fault.stops_workers:
            one.lost_nimg = max(0, one.nimg - self.arm.checkpoint_nimg())

    def _note(self, nimg: int) -> None:
        """Keeps when the run came how far."""
        if not self.ticks or nimg > self.ticks[-1][1]:
            self.ticks.append((time.time(), nimg))

    def _settle(self) -> None:
        """When each fault was recovered from, and what was played again for it, from the ticks."""
        from tests.chaos.faults import FAULTS

        resumed = self.arm.resumptions()
        for one, moment in zip(self.struck, self.moments, strict=True):
            if one.skipped:
                continue
            stops = FAULTS[one.kind].stops_workers
            one.recovered_sec = seconds_to_recover(self.ticks, moment, silenced=stops)
            begun = [nimg for at, nimg in resumed if at > moment]
            if stops and one.recovered_sec is not None and begun:
                reached = [nimg for at, nimg in self.ticks if at < moment + one.recovered_sec]
                one.lost_nimg = max(0, max(reached, default=one.nimg) - begun[0])

    def _tend(self) -> None:
        """Does what is due, and looks after the other commands."""
        now = time.monotonic()
        due = [act for moment, act in self._later if moment <= now]
        self._later = [(moment, act) for moment, act in self._later if moment > now]
        for act in due:
            act()
        for entry in list(self.others):
            process, deadline, judge = entry
            if process.poll() is not None:
                self.others.remove(entry)
                if said := judge(process.returncode):
                    self.wrong.append(said)
            elif now > deadline:
                self.others.remove(entry)
                self.wrong.append("a second command did not end")
                os.killpg(process.pid, signal.SIGKILL)

    def _end(self) -> None:
        """Undoes what is still broken, and looks for processes left behind."""
        self.over = True
        if self.stand.nan_file.exists():
            self.wrong.append("a NaN that was planted struck nobody")
        for _, act in sorted(self._later, key=lambda pair: pair[0]):
            act()
        self._later = []
        while self.others:
            self._tend()
            time.sleep(POLL_SEC)
        # The nodes and a new MLflow server, once it is there, are the stand's, not the run's.
        self.stand.settle()
        known = self._before | self.stand.pids
        ended = self.command.poll() is not None
        if not ended:
            for process in processes.family():
                if process.pid not in known and not processes.called("ray/", [process]):
                    processes.strike(process, signal.SIGKILL)
            self.command.wait()
        left = processes.strays(known, patience_sec=STRAYS_SEC)
        if ended:
            self.wrong += [f"left running: {line}" for line in left]
        for line in left:
            with contextlib.suppress(psutil.Error):
                psutil.Process(int(line.split()[0])).kill()
        self._log.close()


def seconds_to_recover(
    ticks: list[tuple[float, int]], moment: float, *, silenced: bool
) -> float | None:
    """From a fault to the next tick beyond all earlier ones; None where there is none.

    Workers that lost their controller play on for a moment: where a fault silences the run, it is
    the first tick after the silence that counts. `ticks` holds (time, nimg), both increasing.
    """
    after = [at for at, _ in ticks if at > moment]
    if silenced:
        for before, now in pairwise([moment, *after]):
            if now - before > SILENCE_SEC and before < moment + NOTICED_SEC:
                return now - moment
    return after[0] - moment if after else None

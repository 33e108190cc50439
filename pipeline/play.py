"""The core of a run, the same under every adapter: play, judge, journal, checkpoint, resume.

Knows neither Ray nor MLflow. Everything that outlives it is in the run's folder; what the outside
world wants of it is said there too (a stop request).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from gan.game import Batch, Game
from gan.health import CODES, Health, Verdict
from gan.loop import Tick, training
from gan.world import World
from pipeline.checkpoint import Checkpoint, checkpoint_at, clear_up
from pipeline.dataset import ShardSet
from pipeline.devices import compute_repeatably
from pipeline.events import note_playing
from pipeline.host import DivergedError, Host
from pipeline.loader import batches
from pipeline.rollbacks import (
    Rollback,
    lr_factor_at,
    order_seed_at,
    record_rollback,
    rollbacks,
)
from pipeline.run import Run
from pipeline.shards import ShardReader
from pipeline.signals import Listener, Signals, Wish
from pipeline.storage import StorageError

LAG_SEC = 90.0  # NFS shows a new file to another node after a minute at most


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far the game came, and whether that is the end."""

    nimg: int
    finished: bool


def play(
    run: Run,
    shards: ShardSet,
    *,
    device: torch.device | str = "cpu",
    until_nimg: int | None = None,
    token: int = 0,
    alive: Callable[[], None] = lambda: None,
) -> Outcome:
    """Plays `run` from its newest checkpoint to its end, or to the next round after a stop
    request.

    With `until_nimg` it pauses after the first round that reaches so many images, judged and with
    a checkpoint; the weights do not depend on pauses. A pause is a tick, so the next tick's means
    are of the images since; to leave all ticks where they are, pause at a multiple of
    `experiment.tick_nimg`. A run that is there already does nothing. A stop request is no tick:
    the tick that it cuts is made whole when the run goes on.

    `token` is the writer's (see pipeline.lease; 0 where nobody else can write); `alive` is called
    before every round and while G_ema is judged. Every rank of the default process group must call
    this (or one process where there is no group); rank 0 alone writes to the run's folder. Raises
    DivergedError, StorageError and FencedError.
    """
    if run.experiment.cluster.deterministic:
        compute_repeatably(device)
    total = run.experiment.turns.total_nimg
    until = total if until_nimg is None else min(until_nimg, total)
    while True:
        match = _Match(run, shards, device=device, token=token, alive=alive)
        ended = match.play(until)
        if ended is not None:
            return Outcome(ended, finished=ended >= total)


def stretch(from_nimg: int, world: World, device: torch.device | str) -> dict[str, Any]:
    """On what this process plays, for the run's lineage: the kind of device decides the last bits.

    One rank speaks for all: workers of one run are of one kind.
    """
    kind = torch.device(device).type
    model = (
        torch.cuda.get_device_name(device)
        if kind == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return {
        "from_nimg": from_nimg,
        "world_size": world.size,
        "device": kind,
        "device_model": model,
        "threads": torch.get_num_threads(),
    }


class _Match:
    """The game between two rollbacks. Every rank has one, and calls `play`."""

    def __init__(
        self,
        run: Run,
        shards: ShardSet,
        *,
        device: torch.device | str,
        token: int,
        alive: Callable[[], None],
    ):
        self.run, self.shards, self.alive = run, shards, alive
        self.experiment, self.world = run.experiment, World.current()
        game_is_of = {"seed": self.experiment.seed, "device": device}
        self.game = Game(self.experiment.game, shards.sample, **game_is_of)
        self.reader = ShardReader(shards, cache_gb=self.experiment.data.cache_gb)
        found = self._clear_up() if self.world.is_first else None
        self.given_up = self._agreed_rollbacks()
        checkpoint = self._agreed_checkpoint(found)
        if checkpoint is not None:
            self.game.load_state_dict(checkpoint.state)
        self.health, self.warned = Health(num_images=shards.num_images), False
        last_tick = 0
        if self.world.is_first:
            run.note_stretch(stretch(self.game.nimg, self.world, device))
            note_playing(run.storage, token=token, nimg=self.game.nimg)
            for line in run.journal():
                if line.nimg <= self.game.nimg:
                    last_tick = line.nimg
                    self.health.judge(line.nimg, line.metrics)
        self.last_tick = int(self.world.sum_number(last_tick))
        self.host = Host(
            run,
            shards,
            self.game,
            device=device,
            token=token,
            rollbacks=len(self.given_up),
            alive=alive,
        )

    def play(self, until: int) -> int | None:
        """Plays to `until`, or to a stop request: where the game stands; None after a rollback."""
        every_sec = self.experiment.checkpoint.every_sec
        listener = Listener(self.run, every_sec=every_sec) if self.world.is_first else None
        self.signals = Signals(self.world, listener)
        try:
            while self.game.nimg < until:
                # A remedy holds from its rollback's target on, wherever the game is taken up.
                ahead = [back.to_nimg for back in self.given_up if back.to_nimg > self.game.nimg]
                stopped, lost = self._stretch(min([until, *ahead]), until)
                if stopped or lost is not None:
                    break
            else:
                lost = None
            self.signals.close()
            self.host.close()
        except BaseException:
            self.host.settle()
            raise
        finally:
            if listener is not None:
                listener.close()
        if lost is not None:
            self._roll_back(lost)
            return None
        return self.game.nimg

    def _stretch(self, border: int, until: int) -> tuple[bool, Verdict | None]:
        """Plays to `border` with one set of remedies: whether it was stopped, or must go back."""
        experiment, game = self.experiment, self.game
        game.lr_factor = lr_factor_at(self.given_up, game.nimg)
        stream = batches(
            self.reader,
            seed=order_seed_at(experiment.seed, self.given_up, game.nimg),
            batch_size=experiment.turns.batch_size,
            first_batch=game.num_batches,
            world=self.world,
            data=experiment.data,
            device=game.device,
        )
        with closing(stream):
            return self._ticks(stream, border, until)

    def _ticks(
        self, stream: Iterator[Batch], border: int, until: int
    ) -> tuple[bool, Verdict | None]:
        """Plays the batches to `border`, tick by tick."""
        experiment, game = self.experiment, self.game
        stopped = False
        ticks = training(
            game, stream, until_nimg=border, tick_nimg=experiment.tick_nimg, pause=self._pause
        )
        for tick in ticks:
            ends = tick.nimg >= until
            judged = ends or self._due(tick.nimg, experiment.evaluate_nimg)
            verdict = self._report(tick, judged=judged)
            if verdict.lost and self._goes_back(verdict, tick):
                return False, verdict
            # Only what was judged is known to be well: a collapse shows in G's images alone.
            anchor = judged and verdict.sound
            if ends or anchor or self._due(tick.nimg, experiment.checkpoint_nimg):
                self.host.save(anchor=anchor, must=ends)
                self.signals.saved()
            self.last_tick = tick.nimg
        else:
            stopped = game.nimg < border
        if stopped:
            self.host.save(anchor=False, must=True)
        return stopped, None

    def _pause(self, game: Game) -> bool:
        """Between two rounds: a checkpoint where one is due; whether to stop."""
        self.alive()
        wish = self.signals.before_round()
        if wish is Wish.SAVE:
            self.host.save(anchor=False)
            self.signals.saved()
        return wish is Wish.STOP

    def _due(self, nimg: int, every: int) -> bool:
        """Whether a multiple of `every` was passed since the last tick."""
        return nimg // every > self.last_tick // every

    def _report(self, tick: Tick, *, judged: bool) -> Verdict:
        """Judges, and journals. The verdict is rank 0's, on every rank."""
        score, unjudged = None, ""
        if judged and all(map(math.isfinite, tick.scalars.values())):
            try:
                score = self.host.scores(tick)
            except DivergedError as error:  # on every rank at once
                unjudged = str(error)
        metrics = tick.scalars | (score.metrics if score is not None else {})
        verdict = self._verdict(tick.nimg, metrics, unjudged)
        self.host.report(tick, metrics | {"health/verdict": float(verdict.code)}, score)
        return verdict

    def _verdict(self, nimg: int, metrics: Mapping[str, float], unjudged: str) -> Verdict:
        mine = Verdict()
        if unjudged:
            mine = Verdict("diverging", unjudged, lost=True, sound=False)
        elif self.world.is_first:
            mine = self.health.judge(nimg, metrics)
        told = 4 * mine.code + 2 * mine.lost + mine.sound if self.world.is_first else 0
        code, flags = divmod(int(self.world.sum_number(told)), 4)
        if self.world.is_first:
            return mine
        return Verdict(list(CODES)[code], unjudged, lost=flags >= 2, sound=flags % 2 == 1)

    def _goes_back(self, verdict: Verdict, tick: Tick) -> bool:
        """Whether the watchdog rolls the game back. Raises DivergedError where it is to end."""
        watchdog, done = self.experiment.watchdog, len(self.given_up)
        how = "diverged" if verdict.state == "diverging" else f"is {verdict.state}"
        lost = f"the game {how} at {tick.nimg / 1000:.1f} kimg: {verdict.reason}"
        if watchdog.action == "rollback" and done < watchdog.max_rollbacks:
            return True
        if watchdog.action == "rollback":
            lost += f"; {done} rollbacks did not help"
        if watchdog.action != "warn" or verdict.state == "diverging":
            self.host.wait()
            raise DivergedError(f"{lost}; {verdict.remedy}")
        if self.world.is_first and not self.warned:
            self.run.tell(f"{lost}; {verdict.remedy}")
        self.warned = True
        return False

    def _roll_back(self, verdict: Verdict) -> None:
        """Gives up the game since the last anchor. Every rank must call this."""
        if self.world.is_first:
            rollback = Rollback(
                number=len(self.given_up) + 1,
                from_nimg=self.game.nimg,
                to_nimg=max(self.run.newest_anchor, 0),
                reason=f"{verdict.state}: {verdict.reason}",
                lr_factor=self.experiment.watchdog.lr_factor,
                new_order=self.experiment.watchdog.new_order,
            )
            record_rollback(self.run.storage, rollback)
            self.run.tell(
                f"watchdog: {rollback.reason} at {rollback.from_nimg / 1000:.1f} kimg; back to "
                f"{rollback.to_nimg / 1000:.1f} kimg, rollback {rollback.number} of "
                f"{self.experiment.watchdog.max_rollbacks}"
            )
        self.world.sum_number(0.0)  # nobody reads before it is written

    def _clear_up(self) -> Checkpoint | None:
        """Removes what a killed writer or a rollback left; what the game goes on from."""
        found, said = clear_up(self.run.storage, abandoned=self.run.abandoned())
        for text in said:
            self.run.tell(text)
        self.run.drop_given_up_snapshots()
        return found

    def _agreed_rollbacks(self) -> list[Rollback]:
        """Those that rank 0 found, on every rank: on a shared folder another node's view lags."""
        found = rollbacks(self.run.storage)
        count = int(self.world.sum_number(len(found) if self.world.is_first else 0))
        deadline = time.monotonic() + LAG_SEC
        while len(found) < count:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self.run.storage.uri} shows this node {len(found)} of {count} rollbacks"
                )
            self.alive()
            time.sleep(1)
            found = rollbacks(self.run.storage)
        return found[:count]

    def _agreed_checkpoint(self, found: Checkpoint | None) -> Checkpoint | None:
        """What rank 0 found, on every rank: on a shared folder each may see another newest."""
        nimg = int(self.world.sum_number(found.nimg if found else 0))
        if nimg == 0 or found is not None:
            return found
        return checkpoint_at(self.run.storage, nimg)

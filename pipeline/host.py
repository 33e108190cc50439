"""What happens between ticks and rounds: judging on all ranks, files on rank 0."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from gan.config import ConfigError
from gan.game import Game
from gan.loop import Tick
from gan.sampling import fixed_labels, images_of
from pipeline.behind import Behind
from pipeline.card import CARD, TENSORS, SnapshotCard, measure_of
from pipeline.checkpoint import CheckpointWriter, Standing
from pipeline.dataset import ShardSet
from pipeline.extraction import FEATURES
from pipeline.extractors import configured_extractor
from pipeline.journal import JournalLine, JournalWriter
from pipeline.judge import Judge, Score
from pipeline.lease import check_token
from pipeline.pictures import grid_png
from pipeline.run import GRID, SNAPSHOTS, Run, now_ms
from pipeline.snapshot import packed

log = logging.getLogger(__name__)

PREVIEW_ROWS = 8
WAIT_SEC = 1.0  # at a time for storage; ranks wait together
MAX_PREVIEW_COLUMNS = 16  # classes side by side; without classes, or with more, 8 columns


class DivergedError(Exception):
    """The game is lost. Every rank raises it at the same tick."""


class Host:
    """Looks after one game. Every rank has one; rank 0's alone writes to the run's folder.

    It writes in order from a thread of its own, so a checkpoint stands only after the journal up
    to it, and slow storage holds the game up only where a checkpoint waits for the one before.
    """

    def __init__(
        self,
        run: Run,
        shards: ShardSet,
        game: Game,
        *,
        device: torch.device | str,
        token: int,
        rollbacks: int,
        alive: Callable[[], None],
    ):
        self.run, self.game, self.shards = run, game, shards
        self.experiment = run.experiment
        self.first = game.world.is_first
        self._alive, self._rollbacks = alive, rollbacks
        self._token, self._ticked = token, -1
        extractor = configured_extractor(self.experiment.evaluate, shards.sample.shape)
        cache = run.storage.beside(FEATURES)
        cache_gb = self.experiment.data.cache_gb
        self.judge = Judge(extractor, shards, device=device, cache=cache, cache_gb=cache_gb)
        self._spent = {"host/evaluate_sec": 0.0, "host/checkpoint_sec": 0.0}
        self._score: float | None = None
        self._saved_nimg = (
            game.nimg
        )  # where it was taken up, or at the start, where there is nothing
        if self.first:
            self._behind = Behind("host", waiting=alive)  # storage has deadlines of its own
            self._journal = JournalWriter(
                run.storage, last=run.journalled_nimg, token=token, rollbacks=rollbacks
            )

            def fence() -> None:
                check_token(run.storage, token)

            self._fence = fence
            self._checkpoints = CheckpointWriter(
                run.storage,
                keep=self.experiment.checkpoint.keep,
                behind=self._behind,
                fence=fence,
                abandoned=run.abandoned,
            )

    def scores(self, tick: Tick) -> Score:
        """G_ema, judged. Raises DivergedError where it cannot be. Every rank must call this."""
        started = time.perf_counter()
        try:
            score = self.judge.score(
                self.game.G_ema,
                latent_dim=self.experiment.generator.latent_dim,
                conditioning=self.experiment.conditioning.name,
                images=self.experiment.evaluate.images,
                progress=lambda done, total: self._alive(),
            )
        except ConfigError:
            raise
        except ValueError as error:  # features that are not finite; the sums tell every rank
            raise DivergedError(
                f"G_ema cannot be judged at {tick.nimg / 1000:.1f} kimg ({error})"
            ) from error
        self._spent["host/evaluate_sec"] += time.perf_counter() - started
        return score

    def report(self, tick: Tick, metrics: dict[str, float], score: Score | None) -> None:
        """Journals the tick and keeps G_ema where it was judged. Rank 0 does."""
        if not self.first:
            return
        picture = None if score is None else self._keep_snapshot(tick.nimg, score)
        self._score = None if score is None else self._chosen(score)
        line = JournalLine(tick.nimg, now_ms(), tick.seconds, metrics | self._spent, picture)
        self._spent = dict.fromkeys(self._spent, 0.0)
        self._ticked = tick.nimg
        self._behind.do(lambda: self._write_line(line))

    def save(self, *, anchor: bool, must: bool = False) -> None:
        """Publishes a checkpoint. Every rank must call this, at the same round.

        One that is neither an anchor nor a must comes by the clock, and is left out where the one
        before is still on its way, or where a number of the game is not finite any more, as its
        next tick will say. (A must is a step towards that tick.)
        """
        if not anchor and not must and not self.game.is_finite():
            return
        started, state = time.perf_counter(), self.game.state_dict()
        if anchor or must:
            self.wait()
            self._spent["host/checkpoint_sec"] += time.perf_counter() - started
        if not self.first or self._saved_nimg == self.game.nimg:  # it stands, maybe as an anchor
            return
        if not anchor and not must and self._checkpoints.busy:
            return
        self._saved_nimg = self.game.nimg
        started = time.perf_counter()
        standing = Standing(
            nimg=self.game.nimg,
            anchor=anchor,
            score=self._score if anchor else None,
            rollbacks=self._rollbacks,
            experiment_digest=self.experiment.digest,
            data_digest=self.shards.digest,
            token=self._token,
            ticked=self._ticked,
        )
        self._checkpoints.publish(standing, state)
        self._journal_roll()
        self._spent["host/checkpoint_sec"] += time.perf_counter() - started

    def wait(self) -> None:
        """Returns once all that was written stands; raises what went wrong there, on rank 0. Every
        rank must call this: one that waited in the next round instead would count as hanging.
        """
        world = self.game.world
        while world.sum_number(float(self.first and not self._behind.done_within(WAIT_SEC))):
            self._alive()

    def close(self) -> None:
        """Waits, and ends the writing thread. Every rank must call this."""
        self.wait()
        if self.first:
            self._behind.close()

    def settle(self) -> None:
        """Lets what was begun come to its end after an error, which is worth more than another."""
        if self.first:
            with suppress(Exception):
                self._behind.close()

    def _journal_roll(self) -> None:
        self._behind.do(self._journal.roll)

    def _write_line(self, line: JournalLine) -> None:
        self._fence()
        self._journal.add(line)

    def _chosen(self, score: Score) -> float | None:
        """The score by which checkpoints are compared: without bias where it can be had."""
        metric = self.experiment.evaluate.metric
        values = {measure_of(name): value for name, value in score.metrics.items()}
        return values.get(f"{metric}_corrected", values.get(metric))

    def _keep_snapshot(self, nimg: int, score: Score) -> str:
        folder = f"{SNAPSHOTS}/{nimg:012d}"
        sample = self.shards.sample
        conditional = self.experiment.conditioning.name != "none"
        classes = self.shards.num_classes if conditional else 0
        columns = classes if 1 < classes <= MAX_PREVIEW_COLUMNS else PREVIEW_ROWS
        count = PREVIEW_ROWS * columns
        labels = fixed_labels(count, num_classes=classes)
        images = images_of(
            self.game.G_ema,
            range(count),
            latent_dim=self.experiment.generator.latent_dim,
            num_classes=classes,
            labels=None if labels is None else labels.tolist(),
        )
        card = SnapshotCard(
            nimg=nimg,
            generator=self.experiment.generator,
            conditioning=self.experiment.conditioning.name,
            sample=sample,
            classes=self.shards.classes if conditional else (),
            scores=score.metrics,
            lineage={
                "run_id": self.run.id,
                "run_name": self.run.name,
                "experiment": self.experiment.to_dict(),
                "data_digest": self.shards.digest,
                "seed": self.experiment.seed,
                "judged": dataclasses.asdict(score),
                "rollbacks": self._rollbacks,
                **self.run.lineage,
            },
        )
        files = {GRID: grid_png(images, columns=columns)} | packed(card, self.game.G_ema)
        self._behind.do(lambda: self._write_snapshot(folder, files))
        return f"{folder}/{GRID}"

    def _write_snapshot(self, folder: str, files: dict[str, bytes]) -> None:
        self._fence()
        for name, data in files.items():
            self.run.storage.write(f"{folder}/{name}", data)
        self._drop_old_snapshots(folder)

    def _drop_old_snapshots(self, newest: str) -> None:
        """Keeps the weights of the newest and the best; pictures stay."""
        best = self.run.best()
        for kept in self.run.snapshots():
            if kept.folder not in (newest, best and best.folder):
                self.run.storage.delete(f"{kept.folder}/{CARD}")
                self.run.storage.delete(f"{kept.folder}/{TENSORS}")

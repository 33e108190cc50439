"""The core of a run, the same under every adapter: play, judge, journal, checkpoint, resume.

Knows neither Ray nor MLflow. Everything that outlives it is in the run's folder; what the outside
world wants of it is said there too (a stop request).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from gan.config import ConfigError
from gan.game import Game
from gan.loop import Tick, training
from gan.sampling import fixed_labels, images_of
from gan.world import World
from pipeline.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    checkpoint_at,
    latest_checkpoint,
)
from pipeline.dataset import ShardSet
from pipeline.extraction import FEATURES
from pipeline.extractors import configured_extractor
from pipeline.judge import Judge, Score
from pipeline.loader import batches
from pipeline.pictures import grid_png
from pipeline.run import GRID, SNAPSHOTS, JournalLine, JournalWriter, Run, now_ms
from pipeline.shards import ShardReader
from pipeline.snapshot import CARD, TENSORS, SnapshotCard, write_snapshot

PREVIEW_ROWS = 8
MAX_PREVIEW_COLUMNS = 16  # classes side by side; without classes, or with more, 8 columns


class DivergedError(Exception):
    """The game is lost: a loss is no longer a number. Every rank raises it at the same tick."""


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
) -> Outcome:
    """Plays `run` from its newest checkpoint to its end, or to the next tick after a stop request.

    With `until_nimg` it pauses after the first round that reaches so many images, judged and with
    a checkpoint; the weights do not depend on pauses. A pause is a tick, so the next tick's means
    are of the images since; to leave all ticks where they are, pause at a multiple of
    `experiment.tick_nimg`. A run that is there already does nothing.

    Every rank of the default process group must call this (or one process where there is no
    group); rank 0 alone writes to the run's folder.
    """
    experiment, world = run.experiment, World.current()
    game = Game(experiment.game, shards.sample, seed=experiment.seed, device=device)
    checkpoint = _agreed_checkpoint(run, world)
    if checkpoint is not None:
        game.load_state_dict(checkpoint.state)
    if world.is_first:
        run.note_stretch(stretch(game.nimg, world, device))
    host = _Host(run, shards, game, device=device)
    stream = batches(
        ShardReader(shards),
        seed=experiment.seed,
        batch_size=experiment.turns.batch_size,
        first_batch=game.num_batches,
        world=world,
    )
    total, before = experiment.turns.total_nimg, game.nimg
    until = total if until_nimg is None else min(until_nimg, total)
    stopped = False
    for tick in training(game, stream, until_nimg=until, tick_nimg=experiment.tick_nimg):
        _check_finite(tick)
        ends = tick.nimg >= until
        judged = ends or _due(before, tick.nimg, experiment.evaluate_nimg)
        host.report(tick, judged=judged)
        stopped = _any(world, world.is_first and run.stop_requested)
        if ends or stopped or _due(before, tick.nimg, experiment.checkpoint_nimg):
            host.save()
        before = tick.nimg
        if stopped:
            break
    host.close()
    return Outcome(game.nimg, finished=game.nimg >= total)


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


def _agreed_checkpoint(run: Run, world: World) -> Checkpoint | None:
    """What rank 0 found, on every rank: on a shared folder each may see another newest."""
    found = latest_checkpoint(run.storage) if world.is_first else None
    nimg = int(_sum(world, found.nimg if found else 0))
    if nimg == 0 or found is not None:
        return found
    return checkpoint_at(run.storage, nimg)


def _check_finite(tick: Tick) -> None:
    lost = {name: value for name, value in tick.scalars.items() if not math.isfinite(value)}
    if lost:
        name, value = next(iter(lost.items()))
        raise DivergedError(
            f"the game diverged: {name} is {value} at {tick.nimg / 1000:.1f} kimg; "
            f"lower generator.lr and discriminator.lr, or raise objective.r1_gamma"
        )


def _due(before: int, now: int, every: int) -> bool:
    return now // every > before // every


def _any(world: World, mine: bool) -> bool:
    """Whether any rank says so. Every rank must call this."""
    return _sum(world, float(mine)) > 0


def _sum(world: World, value: float) -> float:
    """The sum over all ranks. Every rank must call this."""
    if world.size == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    return world.sum(torch.tensor(value, dtype=torch.float64, device=device)).item()


class _Host:
    """What happens between ticks: evaluation on all ranks, files on rank 0."""

    def __init__(self, run: Run, shards: ShardSet, game: Game, *, device: torch.device | str):
        self.run, self.game = run, game
        self.experiment = run.experiment
        extractor = configured_extractor(self.experiment.evaluate, shards.sample.shape)
        cache = run.storage.beside(FEATURES)
        self.judge = Judge(extractor, shards, device=device, cache=cache)
        self.first = game.world.is_first
        self.shards = shards
        if self.first:
            self.journal = JournalWriter(run)
            self.checkpoints = CheckpointWriter(run.storage, keep=self.experiment.checkpoint.keep)

    def report(self, tick: Tick, *, judged: bool) -> None:
        """Journals the tick; where it is due, judges G_ema and keeps it. Every rank must call
        this.
        """
        metrics, picture = dict(tick.scalars), None
        if judged:
            score = self._score(tick)
            metrics |= score.metrics
            if self.first:
                picture = self._keep_snapshot(tick.nimg, score)
        if self.first:
            self.journal.add(JournalLine(tick.nimg, now_ms(), tick.seconds, metrics, picture))

    def _score(self, tick: Tick) -> Score:
        """G_ema, judged. Every rank must call this."""
        try:
            return self.judge.score(
                self.game.G_ema,
                latent_dim=self.experiment.generator.latent_dim,
                conditioning=self.experiment.conditioning.name,
                images=self.experiment.evaluate.images,
            )
        except ConfigError:
            raise
        except ValueError as error:  # features that are not finite; the sums tell every rank
            raise DivergedError(
                f"the game diverged: G_ema cannot be judged at {tick.nimg / 1000:.1f} kimg "
                f"({error}); lower generator.lr and discriminator.lr, or raise objective.r1_gamma"
            ) from error

    def save(self) -> None:
        """Publishes a checkpoint in the background. Rank 0 does; the others have nothing to do."""
        if self.first:
            self.checkpoints.publish(self.game.nimg, self.game.state_dict())
            self.journal.roll()

    def close(self) -> None:
        """Waits for what is still being published."""
        if self.first:
            self.checkpoints.wait()

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
        self.run.storage.write(f"{folder}/{GRID}", grid_png(images, columns=columns))
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
                **self.run.lineage,
            },
        )
        write_snapshot(self.run.storage, folder, card, self.game.G_ema)
        self._drop_old_snapshots(folder)
        return f"{folder}/{GRID}"

    def _drop_old_snapshots(self, newest: str) -> None:
        """Keeps the weights of the newest and the best; pictures stay."""
        best = self.run.best()
        for kept in self.run.snapshots():
            if kept.folder not in (newest, best and best.folder):
                self.run.storage.delete(f"{kept.folder}/{CARD}")
                self.run.storage.delete(f"{kept.folder}/{TENSORS}")

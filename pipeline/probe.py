"""How fast an experiment plays: a few seconds of the real game, here or in a group of workers."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass

import torch

from gan.game import Game
from gan.loop import play_round
from pipeline.dataset import ShardSet
from pipeline.devices import compute_repeatably, device_here
from pipeline.experiment import Experiment
from pipeline.extractors import configured_extractor
from pipeline.judge import Judge
from pipeline.loader import batches
from pipeline.shards import ShardReader

PROBE_SEC = 2.0
WARM_UP_ROUNDS = 3
JUDGED = 500  # images, from which the time of a whole evaluation is told


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one device of the kind that this process has."""

    device: str
    img_per_sec: float
    evaluation_sec: float

    def seconds(self, experiment: Experiment) -> float:
        """Device seconds of playing and judging the whole experiment."""
        evaluations = max(1, round(experiment.turns.total_nimg / experiment.evaluate_nimg))
        return experiment.turns.total_nimg / self.img_per_sec + evaluations * self.evaluation_sec


@dataclass(frozen=True, slots=True)
class Pace:
    """A game that was played for a moment, how fast, and what it reported."""

    game: Game
    img_per_sec: float  # of all workers together
    scalars: dict[str, float]


def pace_of(experiment: Experiment, shards: ShardSet, *, device: str) -> Pace:
    """Plays rounds at the full batch for about PROBE_SEC; nothing is kept. Every rank of the
    default process group must call this.
    """
    if experiment.cluster.deterministic:
        compute_repeatably(device)
    game = Game(experiment.game, shards.sample, seed=experiment.seed, device=device)
    stream = batches(
        ShardReader(shards, cache_gb=experiment.data.cache_gb),
        seed=experiment.seed,
        batch_size=experiment.turns.batch_size,
        first_batch=0,
        world=game.world,
        data=experiment.data,
        device=device,
    )
    with closing(stream):
        for _ in range(WARM_UP_ROUNDS):
            play_round(game, stream)
        game.means.take(game.world)  # waits for the device
        started = time.perf_counter()
        play_round(game, stream)
        game.means.take(game.world)
        # Ranks must play equally often, so they agree on how long a round takes.
        agreed = game.world.sum_number(time.perf_counter() - started) / game.world.size
        started, first = time.perf_counter(), game.nimg
        for _ in range(math.ceil(PROBE_SEC / agreed)):
            play_round(game, stream)
        scalars = game.means.take(game.world)
    return Pace(game, (game.nimg - first) / (time.perf_counter() - started), scalars)


def speed_of(experiment: Experiment, shards: ShardSet) -> Speed:
    """Plays and judges for a few seconds in this process; nothing is kept."""
    torch.set_num_threads(experiment.cluster.cpus_per_worker)
    device = device_here(experiment.cluster.device)
    pace = pace_of(experiment, shards, device=device)
    return Speed(device, pace.img_per_sec, _evaluation_sec(experiment, shards, pace.game))


def _evaluation_sec(experiment: Experiment, shards: ShardSet, game: Game) -> float:
    judge = Judge(
        configured_extractor(experiment.evaluate, shards.sample.shape),
        shards,
        device=game.device,
        cache_gb=experiment.data.cache_gb,
    )
    count = min(JUDGED, experiment.evaluate.images)

    def judged() -> float:
        started = time.perf_counter()
        judge.score(
            game.G_ema,
            latent_dim=experiment.generator.latent_dim,
            conditioning=experiment.conditioning.name,
            images=count,
        )
        return time.perf_counter() - started

    judged()  # the real side, which all trials share
    return judged() * experiment.evaluate.images / count

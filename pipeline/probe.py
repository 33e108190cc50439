"""How fast an experiment would play on this machine: a few seconds of the real game."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gan.game import Game
from gan.loop import play_round
from pipeline.dataset import ShardSet
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


def speed_of(experiment: Experiment, shards: ShardSet) -> Speed:
    """Plays and judges for a few seconds; nothing is kept."""
    torch.set_num_threads(experiment.cluster.cpus_per_worker)
    wanted = experiment.cluster.device
    device = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
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
    for _ in range(WARM_UP_ROUNDS):
        play_round(game, stream)
    game.means.take(game.world)  # waits for the device
    started, first = time.perf_counter(), game.nimg
    while time.perf_counter() - started < PROBE_SEC:
        play_round(game, stream)
    game.means.take(game.world)
    img_per_sec = (game.nimg - first) / (time.perf_counter() - started)
    return Speed(device, img_per_sec, _evaluation_sec(experiment, shards, game))


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

"""The final judgement of a search: its best trials again, at latents that chose none of them.

A trial's best score is the smallest of many taken at the same latents, so it flatters. Here each
finalist's best generator is judged on more images, at several sets of other latents, the same
sets for all.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.dataset import open_shards
from pipeline.devices import compute_repeatably, device_here
from pipeline.experiment_file import experiment_from_dict
from pipeline.extraction import FEATURES
from pipeline.extractors import configured_extractor
from pipeline.journal import JournalLine
from pipeline.judge import Judge
from pipeline.ledger import Ledger, Reading, Trial, reading_of
from pipeline.run import Best, Run
from pipeline.snapshot import read_snapshot
from pipeline.storage import open_storage
from pipeline.worker import job_of

FINALS = "finals"
ERRORS = 2  # combined standard errors that two finalists must differ by, or they are tied


@dataclass(frozen=True, slots=True)
class Finalist:
    """A trial's best generator, judged again."""

    number: int
    nimg: int  # of the snapshot
    readings: tuple[Reading, ...]  # one for each set of latents
    mean: float
    error: float
    tied: bool = False  # with the best: nearer than the noise


Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]


def hold_finals(ledger: Ledger, trials: Sequence[Trial], each: Each) -> list[Finalist]:
    """Judges the first `search.finalists` of these trials again, each where `each` puts it; best
    first.

    A judgement that the ledger has is not made again. Left out are trials without a snapshot and,
    with PBT, those whose best generator is another one's.
    """
    config, objective = ledger.config, ledger.config.objectives[0]
    jobs, wanted = [], {}
    for trial in trials:
        run = ledger.run_of(trial)
        best = best_generator(ledger, trial)
        if best is None or best.sha256 in (other.sha256 for other in wanted.values()):
            continue
        if len(wanted) == config.finalists:
            break
        wanted[trial.number] = best
        for seed in range(1, config.final_seeds + 1):  # 0 is the one that trials were judged at
            name = _name(trial.number, best.sha256, config.final_images, seed)
            if not ledger.storage.exists(name):
                told = job_of(run, open_shards(run.experiment.data.shards))
                jobs.append((told, best.folder, config.final_images, seed, str(name)))
    for name, reading in each(judge_again, jobs):
        ledger.storage.write(name, json.dumps(reading).encode())
    found = []
    for number, best in wanted.items():
        names = [_name(number, best.sha256, config.final_images, seed)
                 for seed in range(1, config.final_seeds + 1)]  # fmt: skip
        readings = tuple(Reading(**json.loads(ledger.storage.read(name))) for name in names)
        found.append(_finalist(number, best.card.nimg, readings, objective))
    return _ranked(found)


def best_generator(ledger: Ledger, trial: Trial) -> Best | None:
    """The best snapshot of a trial's own, none that it was cloned with."""
    return ledger.run_of(trial).best(after=trial.from_nimg)


def judge_again(
    told: dict[str, Any], folder: str, images: int, seed: int, name: str
) -> tuple[str, dict[str, Any]]:
    """One judgement of one snapshot, in whatever process; the name it is kept by, and a Reading
    as a dict.
    """
    torch.set_num_threads(told["threads"])
    run = Run.at(open_storage(told["run"]))
    experiment, shards = experiment_from_dict(told["experiment"]), open_shards(told["shards"])
    snapshot = read_snapshot(run.storage, folder)
    extractor = configured_extractor(experiment.evaluate, shards.sample.shape)
    cache = run.storage.beside(FEATURES)
    device = device_here(experiment.cluster.device)
    if experiment.cluster.deterministic:
        compute_repeatably(device)
    cache_gb = experiment.data.cache_gb
    score = Judge(extractor, shards, device=device, cache=cache, cache_gb=cache_gb).score(
        snapshot.module.to(device),
        latent_dim=experiment.generator.latent_dim,
        conditioning=experiment.conditioning.name,
        images=images,
        seed=seed,
    )
    reading = reading_of(JournalLine(snapshot.card.nimg, 0, 0.0, score.metrics))
    assert reading is not None
    return name, dataclasses.asdict(reading)


def _name(number: int, sha256: str, images: int, seed: int) -> str:
    return f"{FINALS}/{number:04d}-{sha256[:16]}-{images}-{seed}.json"


def _finalist(number: int, nimg: int, readings: tuple[Reading, ...], objective: str) -> Finalist:
    values = [reading.values[objective] for reading in readings]
    errors = [reading.errors[objective] for reading in readings]
    # Sets of latents are independent; what they share, the real images, all finalists share too.
    error = math.sqrt(sum(e * e for e in errors)) / len(errors)
    return Finalist(number, nimg, readings, sum(values) / len(values), error)


def _ranked(found: list[Finalist]) -> list[Finalist]:
    ranked = sorted(found, key=lambda finalist: (finalist.mean, finalist.number))
    if not ranked:
        return []
    best = ranked[0]
    return [best] + [
        dataclasses.replace(
            other, tied=other.mean - best.mean <= ERRORS * math.hypot(other.error, best.error)
        )
        for other in ranked[1:]
    ]


def finalists_of(result: dict[str, Any]) -> list[Finalist]:
    """The finalists in a search's result."""
    return [
        Finalist(**(each | {"readings": tuple(Reading(**r) for r in each["readings"])}))
        for each in result["finalists"]
    ]

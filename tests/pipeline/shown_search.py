"""Searches as their page is given them: made up from curves that GANs' curves look like."""

from __future__ import annotations

import io
import math
import random
from typing import Any

from PIL import Image

from gan.config import TurnsConfig
from pipeline.experiment import DataConfig, Experiment
from pipeline.ledger import Reading, Trial
from pipeline.search_config import SearchConfig
from pipeline.search_shown import Judged, Shown
from pipeline.space import Dimension

TOTAL = 96_000
EVERY = 8_000
NOISE = 0.35
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
LR = Dimension(key="generator.lr", kind="loguniform", low=5e-4, high=8e-3)
RATIO = Dimension(
    key="discriminator.lr", kind="loguniform", low=0.25, high=4, times="generator.lr"
)
STEPS = Dimension(key="turns.d_steps", kind="choice", options=(1, 2))
GAMMA = Dimension(
    key="objective.r1_gamma",
    kind="loguniform",
    low=0.01,
    high=10,
    when=(("objective.name", ("relativistic",)),),
)
NAME = Dimension(key="objective.name", kind="choice", options=("relativistic", "hinge"))
EMA = Dimension(key="ema.half_life_kimg", kind="uniform", low=1, high=20)
DIMENSIONS = (LR, RATIO, STEPS, NAME, GAMMA, EMA)
OWN = {
    LR.name: 1e-3,
    RATIO.name: 1.0,
    STEPS.name: 1,
    NAME.name: "relativistic",
    GAMMA.name: 1.0,
    EMA.name: 10.0,
}


def base() -> Experiment:
    """The file's own settings."""
    turns = TurnsConfig(total_kimg=TOTAL / 1000)
    return Experiment(name="digits", data=DataConfig(shards="data/digits"), turns=turns)


def draw(rng: random.Random) -> dict[str, Any]:
    """A point of the space, gamma only where the objective has it."""
    point: dict[str, Any] = {
        LR.name: 5e-4 * 16 ** rng.random(),
        RATIO.name: 0.25 * 16 ** rng.random(),
        STEPS.name: rng.choice((1, 2)),
        NAME.name: rng.choice(NAME.options),
    }
    if point[NAME.name] == "relativistic":
        point[GAMMA.name] = 0.01 * 1000 ** rng.random()
    return {**point, EMA.name: rng.uniform(1, 20)}


def level(point: dict[str, Any]) -> float:
    """Where a point's curve ends."""
    off = math.log(point[LR.name] / 3e-3) ** 2 + 0.3 * math.log(point[RATIO.name] / 1.4) ** 2
    return 1.2 * math.exp(0.7 * off) * (1.15 if point[STEPS.name] == 2 else 1.0)


def readings(
    rng: random.Random, point: dict[str, Any], begin: int, end: int, *, every: int = EVERY
) -> list[Reading]:
    """A noisy curve that falls by a power of the images, from `begin` to `end`."""
    found = []
    for nimg in range(begin + every, end + 1, every):
        slow = 9_000 * (1 + abs(math.log(point[LR.name] / 4e-3))) * point[STEPS.name] ** 0.3
        true = level(point) + 90 * math.exp(-nimg / slow) + 6 * math.exp(-nimg / 50_000)
        error = 0.08 + 0.03 * true
        found.append(
            Reading(
                nimg,
                {
                    "fd": true + error * rng.gauss(0, 1),
                    "diversity": abs(0.05 + 2 / true + 0.01 * rng.gauss(0, 1)),
                },
                {"fd": error, "diversity": 0.01},
            )
        )
    return found


def trial(rng: random.Random, number: int, *, nimg: int = TOTAL) -> Trial:
    """One trial that came so far; trial 0 has the file's own settings."""
    point = dict(OWN) if number == 0 else draw(rng)
    return Trial(
        number=number,
        run=f"digits-search-{number:03d}",
        point=point,
        settings=point,
        origin="the file's own" if number == 0 else "random",
        until_nimg=TOTAL,
        state="complete" if nimg == TOTAL else "stopped",
        readings=readings(rng, point, 0, nimg),
        nimg=nimg,
        device_sec=nimg / 500,
    )


def judged(
    number: int, values: tuple[float, ...], mean: float, error: float, tied: bool
) -> Judged:
    """A row of the final judgement."""
    return Judged(number=number, values=values, mean=mean, error=error, tied=tied)


def png(seed: int) -> bytes:
    """A picture of noise, as a grid of samples is large."""
    noise = random.Random(seed).randbytes(64 * 64)
    file = io.BytesIO()
    Image.frombytes("L", (64, 64), noise).save(file, "PNG")
    return file.getvalue()


def shown(trials: list[Trial], **changes: Any) -> Shown:
    """A search of these trials; `changes` are fields of Shown."""
    saved = sum((t.until_nimg - t.nimg) / 500 for t in trials if t.state == "stopped")
    fields: dict[str, Any] = {
        "name": "digits-search",
        "config": SearchConfig(trials=16),
        "base": base(),
        "trials": trials,
        "dimensions": DIMENSIONS,
        "noise": {"fd": NOISE},
        "saved_device_sec": saved,
        "wall_sec": sum(t.device_sec for t in trials) / 1.9,
        "mlflow": "sqlite:///runs/mlflow.db",
    }
    return Shown(**(fields | changes))


def asha() -> Shown:
    """16 trials: some stopped, one diverged, one failed, a best one that is tied with another."""
    rng = random.Random(4)
    trials = [trial(rng, number) for number in range(16)]
    worst = sorted(trials[1:], key=lambda t: min(r.values["fd"] for r in t.readings))
    for rank, one in enumerate(worst[4:]):
        far = (24_000, 48_000)[rank % 2]
        one.state, one.nimg, one.device_sec = "stopped", far, far / 500
        one.readings = [r for r in one.readings if r.nimg <= far]
        one.reason = (
            f"best so far {one.readings[-1].values['fd']:.3g} +- 0.9 at {far // 1000} kimg is "
            f"behind the best third of {rank + 3} trials by more than 2 standard errors"
        )
    diverged, failed = worst[-1], worst[-2]
    diverged.state, diverged.nimg, diverged.readings = "diverged", 9_600, diverged.readings[:1]
    diverged.reason = "d/loss is not a number after 9.6 kimg"
    failed.state, failed.nimg, failed.readings = "failed", 18_000, failed.readings[:2]
    failed.reason = "RuntimeError: out of memory, 3 times"
    best, second = worst[0].number, worst[1].number
    finalists = (
        judged(best, (3.18, 3.32, 3.24), 3.247, 0.07, False),
        judged(second, (3.36, 3.28, 3.39), 3.343, 0.08, True),
        judged(0, (4.31, 4.24, 4.40), 4.317, 0.09, False),
    )
    return shown(
        trials,
        finalists=finalists,
        best=best,
        samples={best: png(1), second: png(2), 0: png(3)},
        best_toml='name = "digits"\nseed = 0\n\n[generator]\nlr = 0.0031\n',
    )


def population() -> Shown:
    """Six members over four generations; the two worst go on from the two best each time."""
    rng, members, generations = random.Random(2), 6, 4
    length = TOTAL // generations
    trials: list[Trial] = []
    for generation in range(generations):
        before = trials[-members:]
        ranked = sorted(before, key=lambda t: t.readings[-1].values["fd"])
        for member in range(members):
            point, parent, origin = dict(OWN) if member == 0 else draw(rng), None, "random"
            point[NAME.name], point[GAMMA.name] = "relativistic", point.get(GAMMA.name, 1.0)
            if before:
                parent = before[member]
                origin, point = "kept", dict(parent.point)
                if parent in ranked[-2:]:
                    parent = ranked[ranked[::-1].index(parent)]
                    origin, point = "cloned and changed", dict(parent.point)
                    for name in (LR.name, RATIO.name, GAMMA.name):
                        point[name] *= rng.choice((0.8, 1.25))
            begin = generation * length
            trials.append(
                Trial(
                    number=generation * members + member,
                    run=f"pbt-{generation}-{member}",
                    point=point,
                    settings=point,
                    origin=origin if member or generation else "the file's own",
                    generation=generation,
                    member=member,
                    parent=parent.number if parent else None,
                    from_nimg=begin,
                    until_nimg=begin + length,
                    state="complete",
                    readings=readings(rng, point, begin, begin + length),
                    nimg=begin + length,
                    device_sec=length / 500,
                )
            )
    config = SearchConfig(trials=members, scheduler="pbt", generations=generations)
    best = min(trials[-members:], key=lambda t: t.readings[-1].values["fd"]).number
    return shown(
        trials,
        name="digits-pbt",
        config=config,
        best=best,
        best_toml='name = "digits"\n[generator.lr]\nat_kimg = [0, 24]\nvalues = [2e-3, 1e-3]\n',
        finalists=(judged(best, (1.5, 1.4, 1.6), 1.5, 0.05, False),),
        samples={best: png(1)},
    )


def two_objectives() -> Shown:
    """Twelve complete trials, judged by distance and by diversity."""
    rng = random.Random(7)
    trials = [trial(rng, number) for number in range(12)]
    config = SearchConfig(trials=12, scheduler="none", objectives=("fd", "diversity"))
    return shown(trials, config=config, noise={"fd": NOISE, "diversity": 0.01})


def empty() -> Shown:
    """Before the first trial."""
    return shown([], noise={}, mlflow="")


def running() -> Shown:
    """Three trials ended, two under way, one waiting."""
    rng = random.Random(3)
    trials = [trial(rng, number) for number in range(6)]
    for one, nimg in ((trials[3], 40_000), (trials[4], 16_000), (trials[5], 0)):
        one.state = "running" if nimg else "waiting"
        one.nimg, one.device_sec = nimg, nimg / 500
        one.readings = [r for r in one.readings if r.nimg <= nimg]
    return shown(trials)


def hostile() -> Shown:
    """A search whose every text tries to be HTML."""
    search = asha()
    for one in search.trials:
        one.reason, one.origin = HOSTILE + one.reason, one.origin + HOSTILE
        one.mlflow_url = "javascript:alert(1)"
        one.point = {k: HOSTILE if k == NAME.name else v for k, v in one.point.items()}
    return shown(
        list(search.trials),
        name=HOSTILE,
        best=search.best,
        mlflow=HOSTILE,
        best_toml=f'name = "{HOSTILE}"',
        finalists=search.finalists,
    )


SEARCHES = {
    "asha": asha,
    "population": population,
    "two objectives": two_objectives,
    "empty": empty,
    "running": running,
    "hostile": hostile,
}

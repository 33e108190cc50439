"""The small game that is broken, and its settings on each stage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
TICK_KIMG = 0.128
CHECKPOINT_SEC = 2
HANG_SEC = 8

EXPERIMENT = f"""
name = "chaos"
[data]
shards = "data"
[generator]
width = 8
latent_dim = 8
lr = 1e-3
[discriminator]
width = 8
lr = 1e-3
[conditioning]
name = "projection"
[objective]
penalty_interval = 4
[turns]
total_kimg = 16
batch_size = 16
[tracking]
tick_kimg = {TICK_KIMG}
[evaluate]
images = 200
every_kimg = 2
[checkpoint]
every_sec = {CHECKPOINT_SEC}
[cluster]
workers = 2
max_failures = 20
hang_sec = {HANG_SEC}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What the runs of a stage are: settings beside EXPERIMENT's, and what they must equal.

    `twin` names the settings of the undisturbed run; `exact` says whether to the bit, which takes
    the same number of workers all along. A `remedied` run's twin is given the same rollbacks
    before it begins.
    """

    settings: tuple[str, ...] = ()
    twin: tuple[str, ...] = ()
    exact: bool = True
    on_nodes: bool = False
    remedied: bool = False


# Short: the game doubles a rounding error every few hundred images. One worker and two are 5e-12
# apart in d/real_logit at 12 kimg, 1e-7 at 20 and as far as two seeds at 22.
ELASTIC = ("turns.precision=float64", "turns.total_kimg=12")
STAGES = {
    "own": Stage(),  # a Ray that the command starts by itself
    "alone": Stage(),  # the same, one fault a run
    "tight": Stage(),  # the same, on a small disk
    "watched": Stage(
        settings=("watchdog.action=rollback", "watchdog.max_rollbacks=10"), remedied=True
    ),
    "nodes": Stage(
        settings=(*ELASTIC, "cluster.workers=[1,2]"), twin=ELASTIC, exact=False, on_nodes=True
    ),
}
# Of each tensor's largest value. The suite prints what one worker and two are apart undisturbed; a
# lost, doubled or reordered batch parts them by 1e-3 and more.
TOLERANCE = 1e-6


def stripes(count: int, *, size: int = 16) -> Iterator[tuple[np.ndarray, int]]:
    """Images that differ by number: the label's stripe, and the number in the first pixels."""
    for number in range(count):
        image = np.zeros((size, size, 1), np.uint8)
        label = number % 2
        image[:, label * 3 + 1] = 200
        image[0, 0], image[0, 1] = number // 256, number % 256
        yield image, label


def clean_environment() -> dict[str, str]:
    """The environment without what would lead to somebody's Ray, MLflow or S3."""
    outside = ("RAY_", "MLFLOW_", "AWS_")
    return {k: v for k, v in os.environ.items() if not k.startswith(outside)}

"""python -m tests.bench [step|workers|train|gate|frechet|data|prepare]: for MEASUREMENTS.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gan.config import Network
from tests.bench import data, frechet, gate_rates, prepare
from tests.bench.rounds import (
    bare_rounds,
    compare,
    digits_game,
    images_per_second,
    textbook_rounds,
)
from tests.ranks import run_ranks

BATCHES = (64, 256)
GAMES: tuple[tuple[Network, int, int], ...] = (  # network, width, batch
    ("dcgan", 16, 64),
    ("dcgan", 32, 64),
    ("mlp", 256, 32),
    ("resnet", 32, 32),
    ("r3gan", 32, 32),
    ("stylegan2", 8, 32),
)
WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "eager, fakes reused as the textbook does": {"reuse_fakes": True},
    "compiled": {"compiled": True},
    "bfloat16": {"precision": "bfloat16"},
}


def step() -> None:
    """One round of ours, each way, against the textbook loop in float32: same networks, batch and
    core.
    """
    torch.set_num_threads(1)
    emulated = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for network, width, batch_size in GAMES:
        game = partial(
            digits_game, network=network, width=width, batch_size=batch_size, plain=True
        )
        textbook = textbook_rounds(game())
        for way, how in WAYS.items():
            what = f"round, {network} of width {width}, batch {batch_size}, {way}: textbook / ours"
            if way == "bfloat16" and emulated:
                print(f"{what}: not measured, this processor only emulates it", flush=True)
            else:
                show(what, compare(bare_rounds(game(**how)), textbook, pairs=9, count=6))


def workers() -> None:
    """Two workers of one core each against one: the bare loop on a gloo group."""
    for batch_size in BATCHES:
        pairs = []
        for _ in range(3):
            alone = median(run_ranks(images_per_second, 1, batch_size)[0])
            together = median(run_ranks(images_per_second, 2, batch_size)[0])
            pairs.append(together / alone)
        show(f"2 workers / 1 worker, batch {batch_size}", (median(pairs), min(pairs), max(pairs)))


def train() -> None:
    """`forger train` on synthetic images against the bare loop in as many processes."""
    for count in (1, 2):
        pairs = []
        for _ in range(3):
            bare = median(run_ranks(images_per_second, count, 64)[0])
            pairs.append(forger_images_per_second(count) / bare)
        show(
            f"forger train / bare loop, {count} worker(s)", (median(pairs), min(pairs), max(pairs))
        )


def forger_images_per_second(workers: int) -> float:
    """Between the ticks of a real run: with its journal, checkpoints and tracking."""
    import numpy as np

    from pipeline.folder import Folder
    from pipeline.run import Run
    from pipeline.shards import write_shards

    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.RandomState(0).randint(0, 256, (2048, 32, 32, 1), dtype=np.uint8)
        write_shards(f"{folder}/data", ((image, -1) for image in noise), classes=(), origin={})
        Path(folder, "noise.toml").write_text(
            'data.shards = "data"\n'
            "generator = { width = 16, lr = 1e-3 }\ndiscriminator = { width = 16, lr = 1e-3 }\n"
            "objective.penalty_interval = 4\nturns.total_kimg = 36\ntracking.tick_kimg = 2\n"
            "evaluate = { every_kimg = 100, images = 100 }\n"
        )
        command = [
            sys.executable,
            "-m",
            "jobs",
            "train",
            "noise.toml",
            f"cluster.workers={workers}",
        ]
        root = str(Path(__file__).parents[2])
        subprocess.run(
            command,
            cwd=folder,
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONPATH": root},
        )
        lines = list(Run.at(Folder(f"{folder}/runs/noise")).journal())
    first, last = lines[1], lines[-2]  # without the warm-up, and without the evaluation at the end
    return (last.nimg - first.nimg) / (last.time_ms - first.time_ms) * 1000


def show(what: str, ratio: tuple[float, float, float]) -> None:
    """One line of the table."""
    middle, low, high = ratio
    print(f"{what:<72} {middle:.2f}  ({low:.2f} to {high:.2f})", flush=True)


BENCHES = {
    "step": step,
    "workers": workers,
    "train": train,
    "gate": gate_rates.main,
    "frechet": frechet.main,
    "data": data.main,
    "prepare": prepare.main,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()

"""python -m tests.bench [step|workers|train|gate|frechet|data|prepare]: for MEASUREMENTS.md."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

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
FAMILIES: tuple[tuple[Network, int], ...] = (
    ("mlp", 256),
    ("resnet", 32),
    ("r3gan", 32),
    ("stylegan2", 8),
)


def step() -> None:
    """One round of ours against the textbook loop: same networks, batch and core."""
    torch.set_num_threads(1)
    for width in (16, 32):
        config = digits_game(width=width, plain=True)
        show(
            f"round, width {width}, float32: textbook / ours",
            compare(bare_rounds(config), textbook_rounds(config)),
        )
    for network, width in FAMILIES:
        config = digits_game(network=network, width=width, batch_size=32, plain=True)
        show(
            f"round, {network} of width {width}, batch 32: textbook / ours",
            compare(bare_rounds(config), textbook_rounds(config), pairs=9, count=4),
        )
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print("round in bfloat16: not measured, this processor only emulates it")
        return
    low = digits_game(width=32, plain=True, precision="bfloat16")
    show(
        "round, width 32, bfloat16: textbook in float32 / ours",
        compare(bare_rounds(low), textbook_rounds(digits_game(width=32, plain=True))),
    )


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
    print(f"{what:<60} {middle:.2f}  ({low:.2f} to {high:.2f})", flush=True)


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

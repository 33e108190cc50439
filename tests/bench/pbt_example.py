"""Forger's PBT against Ray's own example of PBT on a GAN, at equal images and by one measure.

    PEERS_PYTHON=PYTHON python -m tests.bench.pbt_example DATA KIMG [FOLDER] [SIDE ...]

PYTHON has ray[tune], torchvision and matplotlib. DATA is labelled grey digits of 32 px, prepared.
KIMG is what the discriminators of all members see together; the example's own length is 768.
FOLDER keeps what a side found, so that it is not played again. SIDE is `peer`, `peer-own-scale`
or `forger`; `peer` and `forger` where left out.

The example shifts and scales MNIST by its mean and deviation, so that white is 2.89, which its
tanh generator cannot draw. `peer` gives it digits in [-1, 1] instead; `peer-own-scale` does not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from pipeline.dataset import ShardSet, open_shards
from pipeline.evidence import FrechetEvidence, FrechetReference
from pipeline.extraction import Eye, extract, here, reals
from pipeline.measures import Measure
from pipeline.pictures import grid_png
from pipeline.shards import ShardReader

ROOT = Path(__file__).parents[2]
EXTRACTOR = "digits"
SAMPLES = 10_000
BLOCK = 100  # images shown to the extractor at once
MEMBERS = 8
GENERATIONS = 5
MEAN, DEVIATION = 0.13066, 0.30131  # by which the example shifts and scales
SCALES = {
    "peer": (-1.0, 1.0),
    "peer-own-scale": (-MEAN / DEVIATION, (1 - MEAN) / DEVIATION),
}
WHO = {
    "peer": "pbt_dcgan_mnist, digits in [-1, 1]",
    "peer-own-scale": "pbt_dcgan_mnist, its own scale",
    "forger": "forger search",
}
REMARKS = (
    "pbt_dcgan_mnist: the sampled learning rates are not applied before a trial is restored from "
    "a checkpoint, by a pause or an exploit; until then both are 0.01",
    "pbt_dcgan_mnist: perturbation_interval = 5 is in seconds (time_attr is left out), so what is "
    "found depends on the speed of the machine: measure on an idle one",
    "pbt_dcgan_mnist: no labels; the score is the inception score of one batch of 64 images",
    "forger: networks as wide and latents as many as the example's, no labels; the learning rates "
    "are searched in the example's range of mutations, on a log scale",
    "forger chooses by the extractor that judges here, the example does not; the rows 'best' take "
    "that away",
)


def peer(folder: Path, data: ShardSet, kimg: float, scale: tuple[float, float]) -> None:
    """Plays the example in the other interpreter, with a home and a Ray of its own."""
    python = os.environ.get("PEERS_PYTHON")
    if not python:
        sys.exit("PEERS_PYTHON must name an interpreter with ray[tune], torchvision, matplotlib")
    images, labels = ShardReader(data).take(np.arange(data.num_images))
    assert labels is not None
    np.save(folder / "digits.npy", images.contiguous().numpy())
    np.save(folder / "labels.npy", labels.numpy())
    job = {
        "images": str(folder / "digits.npy"),
        "labels": str(folder / "labels.npy"),
        "tally": str(folder / "tally"),
        "budget_nimg": round(kimg * 1000),
        "samples": SAMPLES,
        "scale": scale,
    }
    (folder / "job.json").write_text(json.dumps(job))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pbt-") as own:  # short: sockets are made in it
        changes = {"HOME": str(home), "RAY_TMPDIR": own, "RAY_USAGE_STATS_ENABLED": "0"}
        program = [python, str(ROOT / "tests/bench/pbt_example_peer.py"), str(folder)]
        with open(folder / "output.txt", "w") as output:
            subprocess.run(
                program, env=kept | changes, stdout=output, stderr=subprocess.STDOUT, check=True
            )
    shutil.rmtree(home)  # it keeps every checkpoint: 5 MB for each 320 images


def experiment(data: ShardSet, kimg: float) -> dict[str, Any]:
    """Our population: as many members and images, networks of the example's size."""
    rate = {"loguniform": [1e-5, 1e-2]}
    player = {"network": "dcgan", "width": 32, "lr": 2e-3}
    return {
        "name": "digits",
        "data": {"shards": str(Path(data.uri).resolve())},
        "generator": player | {"latent_dim": 100},
        "discriminator": player,
        "objective": {"penalty_interval": 4},
        "turns": {"total_kimg": kimg / MEMBERS, "batch_size": 64},
        "ema": {"half_life_kimg": min(10.0, kimg / MEMBERS / 10)},
        "evaluate": {"extractor": EXTRACTOR, "every_kimg": kimg / MEMBERS / GENERATIONS},
        "search": {
            "name": "pbt",
            "scheduler": "pbt",
            "trials": MEMBERS,
            "generations": GENERATIONS,
            "space": {"generator.lr": rate, "discriminator.lr": rate},
        },
    }


def forger_search(folder: Path, data: ShardSet, kimg: float) -> None:
    """Holds the search with `forger search`, and draws from the last generation and the winner."""
    from pipeline.folder import Folder
    from pipeline.ledger import Ledger

    (folder / "digits.toml").write_text(tomli_w.dumps(experiment(data, kimg)))
    began = time.perf_counter()
    with open(folder / "output.txt", "w") as output:
        subprocess.run(
            [sys.executable, "-m", "jobs", "search", "digits.toml"], cwd=folder, check=True,
            stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    seconds = time.perf_counter() - began
    ledger = Ledger.at(Folder(str(folder / "runs" / "pbt")))
    trials = ledger.trials()
    winner = trials[(ledger.result or {})["best"]]
    last = [t for t in trials if t.generation == GENERATIONS - 1 and t.number != winner.number]
    members = []
    for trial in [winner, *last]:
        best = ledger.run_of(trial).best() if ledger.has_run(trial) else None
        if best is not None:
            file = f"trial-{trial.number}.npy"
            np.save(folder / file, draw(Path(ledger.run_of(trial).storage.below(best.folder).uri)))
            members.append(
                {"file": file, "chosen": trial is winner,
                 "told": {"generation": trial.generation, **trial.settings}}
            )  # fmt: skip
    images = sum(trial.spent_nimg for trial in trials)
    record = {"images": images, "seconds": seconds, "members": members, "notes": []}
    (folder / "result.json").write_text(json.dumps(record, indent=1))


def draw(snapshot: Path) -> np.ndarray:
    """The images of the public seeds 0, 1, ... of a snapshot."""
    from pipeline.folder import Folder
    from pipeline.snapshot import read_snapshot

    found = read_snapshot(Folder(snapshot.parent), snapshot.name)
    blocks = [found.images(range(n, n + BLOCK)).numpy() for n in range(0, SAMPLES, BLOCK)]
    return np.concatenate(blocks)


def distance(images: np.ndarray, data: ShardSet, reference: FrechetReference) -> Measure:
    """The corrected Frechet distance of uint8 images (n, 1, s, s) to the real ones."""
    extractor = Eye(extractor=EXTRACTOR).open(data.sample.shape)
    vectors = [extractor(block) for block in torch.from_numpy(images).split(BLOCK)]
    return FrechetEvidence.of(torch.cat(vectors), reference).corrected


def judged(side: str, folder: Path, data: ShardSet, reference: FrechetReference) -> list[str]:
    """A row of the table for the member that a side chose and one for its best; their pictures."""
    found = json.loads((folder / "result.json").read_text())
    members = [(member, np.load(folder / member["file"])) for member in found["members"]]
    measured = [(distance(images, data, reference), m, images) for m, images in members]
    best = min(measured, key=lambda row: row[0].value)
    chosen = [row for row in measured if row[1]["chosen"]]
    rows = []
    for name, row in [*(("chosen", row) for row in chosen[:1]), ("best", best)]:
        fd, member, images = row
        picture = folder / f"{side}-{name}.png"
        picture.write_bytes(grid_png(torch.from_numpy(images[:64]), columns=8))
        told = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in member["told"].items()
        )
        rows.append(
            f"{WHO[side]:<36}{name:<8}{found['images']:>10,}{found['seconds']:>9.0f}"
            f"{fd.value:>11.4g} +- {fd.standard_error:<8.2g} {told}\n{'':<36}{picture}"
        )
    spread = "  ".join(f"{row[0].value:.3g}" for row in sorted(measured, key=lambda r: r[0].value))
    rows.append(f"{'':<36}all judged: {spread}")
    return [*rows, *(f"{'':<36}{note}" for note in found["notes"])]


def main(arguments: list[str]) -> None:
    """Plays the sides that were not played yet, and prints the table."""
    torch.set_num_threads(1)
    data, kimg = open_shards(arguments[0]), float(arguments[1])
    root = Path(arguments[2] if len(arguments) > 2 else tempfile.mkdtemp(prefix="pbt-bench-"))
    sides = arguments[3:] or ["peer", "forger"]
    for side in sides:
        folder = root.resolve() / side
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "result.json").exists():
            print(f"playing {side}; its words go to {folder}/output.txt", flush=True)
            if side == "forger":
                forger_search(folder, data, kimg)
            else:
                peer(folder, data, kimg, SCALES[side])
    look = reals(Eye(extractor=EXTRACTOR), data, storage=str(root / "features"))
    real = extract(look, images=data.num_images, each=here)
    reference = FrechetReference.of(real.vectors)
    print(f"\n{'who':<36}{'member':<8}{'images':>10}{'seconds':>9}{'FD, 10k':>11}")
    for side in sides:
        print("\n".join(judged(side, root.resolve() / side, data, reference)), flush=True)
    for remark in REMARKS:
        print(f"- {remark}")


if __name__ == "__main__":
    main(sys.argv[1:])

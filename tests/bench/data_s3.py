"""Training from S3 against training from a folder: the same images, two workers, a real gateway.

    python -m tests.bench.data_s3 IMAGES [KIMG]

IMAGES is what `forger prepare` takes, such as train-images-idx3-ubyte.gz of the 60,000 digits.
They are prepared to a folder and to a bucket of a Ceph gateway that is started for it; then
`forger train` plays KIMG (two epochs of the digits) from each in turn: with a cold cache, with a
warm one, and from the folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pipeline.folder import Folder
from pipeline.run import JournalLine, Run
from tests.pipeline.servers import make_bucket, s3

ROOT = Path(__file__).parents[2]
ROUNDS, BUCKET = 3, "digits"
EXPERIMENT = """
generator = {{ width = 16, lr = 2e-3 }}
discriminator = {{ width = 16, lr = 2e-3 }}
conditioning.name = "projection"
objective.penalty_interval = 4
turns.total_kimg = {kimg}
tracking.tick_kimg = 6
evaluate = {{ every_kimg = 1e6, images = 500 }}
cluster.workers = 2
"""


def main(images: str, kimg: float = 120.0) -> None:
    """Prints images a second between ticks, the seconds until the first, and the ratios."""
    with tempfile.TemporaryDirectory() as name, s3() as environment:
        folder = Path(name)
        make_bucket(environment, BUCKET)
        env = os.environ | environment | {
            "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        (folder / "digits.toml").write_text(EXPERIMENT.format(kimg=kimg))
        places = {"folder": str(folder / "data"), "s3": f"s3://{BUCKET}/data"}
        for place in places.values():
            _forger(folder, env, "prepare", images, place, "--size", "32")
        found: dict[str, list[tuple[float, float]]] = {}
        digests = set()
        for number in range(ROUNDS):
            for what, place in (("cold", "s3"), ("warm", "s3"), ("folder", "folder")):
                if what == "cold":
                    shutil.rmtree(folder / "cache", ignore_errors=True)
                run = f"{what}-{number}"
                _forger(folder, env, "train", "digits.toml", f"name={run}",
                        f"data.shards={places[place]}")  # fmt: skip
                lines = list(Run.at(Folder(folder / "runs" / run)).journal())
                found.setdefault(what, []).append(_speeds(lines))
                digests.add(lines[-1].metrics["d/loss"])
        assert len(digests) == 1, f"the same game everywhere, got {digests}"
    local = [speed for speed, _ in found["folder"]]
    print("| data | images/s | of the folder's | seconds to the first tick |")
    print("|---|---|---|---|")
    for what, runs in found.items():
        parts = sorted(speed / own for (speed, _), own in zip(runs, local, strict=True))
        speed, first = (median(run[n] for run in runs) for n in (0, 1))
        print(f"| {what} | {speed:,.0f} | {median(parts):.3f} ({parts[0]:.3f} to {parts[-1]:.3f}) "
              f"| {first:.1f} |")  # fmt: skip


def _speeds(lines: list[JournalLine]) -> tuple[float, float]:
    """Images a second after the first tick, and that tick's seconds."""
    played = lines[1:-1]  # the last tick waits for what the end does
    images = played[-1].nimg - lines[0].nimg
    return images / sum(line.seconds for line in played), lines[0].seconds


def _forger(folder: Path, env: dict[str, str], *words: str) -> None:
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jobs", *words], cwd=folder, env=env,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    print(f"{' '.join(words[:3])}: {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()), *map(float, sys.argv[2:3]))

"""CPU time of a Frechet distance against the public libraries', on the same features, in one run.

10,000 x 2,048 features of an Inception network's kind (rectified, correlated). Timed from feature
matrices in float32 to the number, one thread, real side ready where a library lets it be. Peers
that need torchvision run in another interpreter, named by PEERS_PYTHON; each side is timed in a
process of its own, in turn, because the machine drifts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

IMAGES, DIM = 10_000, 2_048
ROUNDS = 3
BLOCK = 2_500
PEERS = ("pytorch-fid", "clean-fid", "torchmetrics")


def write_features(folder: Path) -> None:
    """Features of fakes and reals: ReLU of correlated normals, in float32."""
    import numpy as np

    rng = np.random.RandomState(0)
    mixing = rng.standard_normal((256, DIM)).astype(np.float32) / 16
    for name, scale, shift in (("real", 1.0, 0.0), ("fake", 0.9, 0.05)):
        hidden = rng.standard_normal((IMAGES, 256)).astype(np.float32) * scale
        noise = rng.standard_normal((IMAGES, DIM)).astype(np.float32)
        np.save(folder / f"{name}.npy", np.maximum(hidden @ mixing + 0.3 * noise + shift, 0))


def time_of(who: str, folder: Path) -> dict[str, float]:
    """CPU seconds and the distance; run in a process of its own, with one thread."""
    import numpy as np

    fake, real = (np.load(folder / f"{name}.npy") for name in ("fake", "real"))
    measure = {
        "ours": ours,
        "pytorch-fid": pytorch_fid,
        "clean-fid": clean_fid,
        "torchmetrics": torchmetrics_fid,
    }[who](real)
    start = time.process_time()
    distance = measure(fake)
    return {"seconds": time.process_time() - start, "distance": float(distance)}


def ours(real):
    """The real side, ready; then moments of the fakes in blocks, and the distance."""
    import torch

    from gan.frechet import Side, frechet_distance
    from gan.moments import FeatureMoments

    torch.set_num_threads(1)

    def moments(features):
        found = FeatureMoments.zeros(DIM, for_kid=False)
        for rows in torch.from_numpy(features).split(BLOCK):
            found.add(rows)
        return found

    side = Side.of(moments(real))
    return lambda fake: frechet_distance(moments(fake), side)


def pytorch_fid(real):
    """As its `calculate_activation_statistics` and `calculate_fid_given_paths` do."""
    import numpy as np
    from pytorch_fid.fid_score import (  # pyright: ignore[reportMissingImports]
        calculate_frechet_distance,
    )

    mean, covariance = real.mean(0), np.cov(real, rowvar=False)
    return lambda fake: calculate_frechet_distance(
        fake.mean(0), np.cov(fake, rowvar=False), mean, covariance
    )


def clean_fid(real):
    """As its `fid_from_feats` does, with the statistics of the reals kept."""
    import numpy as np
    from cleanfid.fid import frechet_distance  # pyright: ignore[reportMissingImports]

    mean, covariance = real.mean(0), np.cov(real, rowvar=False)
    return lambda fake: frechet_distance(
        fake.mean(0), np.cov(fake, rowvar=False), mean, covariance
    )


def torchmetrics_fid(real):
    """Batches of 100; the reals' sums are kept by `reset_real_features=False`."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    torch.set_num_threads(1)

    class Given(torch.nn.Module):
        num_features = DIM

        def forward(self, features):
            return features

    metric = FrechetInceptionDistance(feature=Given(), reset_real_features=False)
    for rows in torch.from_numpy(real).split(100):
        metric.update(rows, real=True)

    def measure(fake):
        metric.reset()
        for rows in torch.from_numpy(fake).split(100):
            metric.update(rows, real=False)
        return metric.compute()

    return measure


def main() -> None:
    """Prints seconds of each, and how many times ours a peer takes."""
    peers_python = os.environ.get("PEERS_PYTHON")
    if not peers_python:
        print("frechet: PEERS_PYTHON names no interpreter with pytorch-fid, clean-fid and")
        print("torchmetrics, so the peers are left out")
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder))
        for _ in range(ROUNDS):
            for who in ("ours", *(PEERS if peers_python else ())):
                python = sys.executable if who == "ours" else str(peers_python)
                found.setdefault(who, []).append(_in_process(python, who, folder))
    ours_seconds = [run["seconds"] for run in found["ours"]]
    print(f"| Frechet distance of {IMAGES} x {DIM} | CPU seconds | times ours | value |")
    print("|---|---|---|---|")
    for who, runs in found.items():
        pairs = sorted(r["seconds"] / own for r, own in zip(runs, ours_seconds, strict=True))
        print(
            f"| {who} | {median(run['seconds'] for run in runs):.2f} | {median(pairs):.1f} "
            f"({pairs[0]:.1f} to {pairs[-1]:.1f}) | {runs[0]['distance']:.6f} |",
            flush=True,
        )


def _in_process(python: str, who: str, folder: str) -> dict[str, float]:
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "tests.bench.frechet", who, folder],
        cwd=Path(__file__).parents[2],
        env=os.environ | one_thread,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(time_of(sys.argv[1], Path(sys.argv[2]))))

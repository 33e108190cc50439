"""python -m tests.bench.extractors [speed|sizes]: images a second that each extractor sees on one
core, and what lite0 makes of faults when it looks at photographs in several sizes.
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np
import torch
from torch import Tensor

from gan.featurenets.efficientnet_lite0 import FEATURES
from gan.featurenets.inception import Inception, inception
from gan.features import Extractor, Photographs
from gan.metrics import FeatureMoments, frechet_distance
from pipeline.extractors import load_extractor
from pipeline.order import permute
from pipeline.prepare import prepare
from pipeline.shards import ShardReader
from tests.gan.test_features import blurred, noised

BLOCK = 100  # as the Judge shows them
SECONDS = 5.0
GROUPS, GROUP = 4, 250  # distances of groups against groups, for their spread


def speed() -> None:
    """One line an extractor and size."""
    rows = [load_extractor("digits", (1, 32, 32))]
    rows += [load_extractor("lite0", (3, size, size)) for size in (32, 64, 128, 256)]
    rows += [inception(Inception(), (3, 32, 32), weights_sha256="0" * 64)]  # weights do not matter
    print(f"{'extractor':<12}{'images':>8}{'seen':>30}{'img/s of CPU':>14}{'img/s':>8}")
    for row in rows:
        cpu, wall = images_per_second(row)
        size = f"{row.shape[1]} px"
        print(f"{row.name:<12}{size:>8}{row.resize:>30}{cpu:>14.0f}{wall:>8.0f}", flush=True)


def images_per_second(extractor: Extractor) -> tuple[float, float]:
    """By the processor's clock, which a busy machine does not slow, and by the wall's."""
    images = torch.randint(0, 256, (BLOCK, *extractor.shape), dtype=torch.uint8)
    extractor(images)
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - cpu < SECONDS:
        extractor(images)
        count += BLOCK
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def sizes() -> None:
    """How many spreads of a distance between real images a fault adds, by the size looked at."""
    network = load_extractor("lite0", (3, 64, 64)).module.network
    assert isinstance(network, torch.nn.Module)
    print(f"{'images':<16}{'seen':<8}{'noise 6':>9}{'blur .5':>9}")
    for name, images in real_sets().items():
        one, other = images[::2], images[1::2]
        for seen_px in (32, 64, 128):
            seen = Photographs(network, size_px=seen_px, filter="bicubic")
            real, fresh = features(seen, one), features(seen, other)
            pairs = [(k, k) for k in range(GROUPS)] + [(k, k - 1) for k in range(GROUPS)]
            chance = np.array([between(fresh[j], real[k]) for k, j in pairs])
            shown = ""
            for faulty in (noised(other, 6), blurred(other, 0.5)):
                found = [between(x, y) for x, y in zip(features(seen, faulty), real, strict=True)]
                added = np.mean(found) - chance[:GROUPS].mean()
                shown += f"{added / chance.std():>9.0f}"
            print(f"{name:<16}{f'{seen_px} px':<8}{shown}", flush=True)


def real_sets() -> dict[str, Tensor]:
    """uint8 images (n, c, s, s): the embedded ones, and cuts of photographs."""
    count = 2 * GROUPS * GROUP
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("faces", "digits"):
            shards = prepare(f"embedded:{name}", f"{folder}/{name}")
            numbers = permute(np.arange(count), size=shards.num_images, key=0)
            images, _ = ShardReader(shards).take(numbers)
            found[f"{name} {shards.image_size_px} px"] = images
    return found | {f"photos {px} px": crops(count, px) for px in (64, 128)}


@torch.no_grad()
def features(network: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """Of uint8 images, in groups."""
    found = [network(block / 127.5 - 1) for block in images.split(BLOCK)]
    return list(torch.cat(found).split(GROUP))


def between(one: Tensor, other: Tensor) -> float:
    """The Frechet distance of two sets of features."""
    sides = []
    for side in (one, other):
        sides.append(FeatureMoments.zeros(FEATURES))
        sides[-1].add(side)
    return frechet_distance(*sides)


def crops(count: int, size_px: int) -> Tensor:
    """Square cuts (n, 3, s, s) of the two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    photographs, rng = load_sample_images().images, np.random.RandomState(0)
    found = []
    for _ in range(count):
        picture = photographs[rng.randint(2)]
        top = rng.randint(picture.shape[0] - size_px)
        left = rng.randint(picture.shape[1] - size_px)
        found.append(picture[top : top + size_px, left : left + size_px])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


BENCHES = {"speed": speed, "sizes": sizes}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()

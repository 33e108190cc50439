"""python -m tests.bench.extractors [speed|sizes]: images a second that each extractor sees on one
core, and what lite0 makes of faults when it looks at photographs in several sizes.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torch import Tensor

from gan.featurenets.efficientnet_lite0 import FEATURES
from gan.featurenets.inception import Inception, inception
from gan.features import Extractor, Photographs
from gan.metrics import FeatureMoments, frechet_distance
from pipeline.extractors import load_extractor
from tests.gan.test_features import blurred, noised

BLOCK = 100  # as the Judge shows them
SECONDS = 5.0
NUM_CROPS = 800


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
    """Distances of crops with a fault over that of fresh crops, from crops of two photographs."""
    print(f"{'crops':<8}{'seen':<8}{'filter':<10}{'noise 8':>9}{'noise 16':>9}{'blur 1':>9}")
    for crop_px in (32, 64, 128):
        real, fresh = (crops(NUM_CROPS, crop_px, seed=seed) for seed in (0, 1))
        faulty = noised(fresh, 8), noised(fresh, 16), blurred(fresh, 1.0)
        for seen_px in (32, 64, 128):
            for filter in ("bilinear", "bicubic"):
                network = load_extractor("lite0", (3, 64, 64)).module.network
                assert isinstance(network, torch.nn.Module)
                seen = Photographs(network, size_px=seen_px, filter=filter)
                reference = moments(seen, real)
                chance = frechet_distance(moments(seen, fresh), reference)
                ratios = [frechet_distance(moments(seen, x), reference) / chance for x in faulty]
                shown = "".join(f"{ratio:>9.2f}" for ratio in ratios)
                print(f"{crop_px:<8}{seen_px:<8}{filter:<10}{shown}", flush=True)
                if crop_px == seen_px:
                    break


def crops(count: int, size_px: int, *, seed: int) -> Tensor:
    """Square cuts (n, 3, s, s) of the two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    photographs, rng = load_sample_images().images, np.random.RandomState(seed)
    found = []
    for number in range(count):
        picture = photographs[number % 2]
        top = rng.randint(picture.shape[0] - size_px)
        left = rng.randint(picture.shape[1] - size_px)
        found.append(picture[top : top + size_px, left : left + size_px])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


@torch.no_grad()
def moments(network: torch.nn.Module, images: Tensor) -> FeatureMoments:
    """Of the features of uint8 images."""
    found = FeatureMoments.zeros(FEATURES)
    for block in images.split(BLOCK):
        found.add(network(block / 127.5 - 1))
    return found


BENCHES = {"speed": speed, "sizes": sizes}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or BENCHES:
        BENCHES[name]()

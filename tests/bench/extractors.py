"""python -m tests.bench.extractors: images a second that each extractor sees on one core."""

from __future__ import annotations

import time

import torch

from gan.featurenets.inception import Inception, inception
from gan.features import Extractor
from pipeline.extractors import load_extractor

BLOCK = 100  # as the Judge shows them
SECONDS = 5.0


def images_per_second(extractor: Extractor) -> tuple[float, float]:
    """By the processor's clock, which a busy machine does not slow, and by the wall's."""
    images = torch.randint(0, 256, (BLOCK, *extractor.shape), dtype=torch.uint8)
    extractor(images)
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.process_time() - cpu < SECONDS:
        extractor(images)
        count += BLOCK
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)


def main() -> None:
    """One line an extractor and size."""
    torch.set_num_threads(1)
    rows = [load_extractor("digits", (1, 32, 32))]
    rows += [load_extractor("lite0", (3, size, size)) for size in (32, 64, 128, 256)]
    rows += [inception(Inception(), (3, 32, 32), weights_sha256="0" * 64)]  # weights do not matter
    print(f"{'extractor':<12}{'images':>8}{'seen':>30}{'img/s of CPU':>14}{'img/s':>8}")
    for row in rows:
        cpu, wall = images_per_second(row)
        size = f"{row.shape[1]} px"
        print(f"{row.name:<12}{size:>8}{row.resize:>30}{cpu:>14.0f}{wall:>8.0f}", flush=True)


if __name__ == "__main__":
    main()

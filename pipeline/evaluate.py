"""Stage: a generator against a reference, each worker judging its share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gan.config import Conditioning, ConfigError
from gan.features import Extractor
from gan.metrics import FeatureMoments, frechet_distance, kid
from gan.randomness import latents
from gan.sampling import to_uint8
from gan.world import World
from pipeline.dataset import ShardSet
from pipeline.shards import ShardReader

SEED = 0  # of the latents judged: the same for every run, so that scores differ by generator alone
BLOCK = 100  # images in one forward pass; fixed, so that a score does not depend on the workers
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Score:
    """How far a generator is from a reference, and by what measure."""

    metrics: dict[str, float]  # by full name: score/fd_digits_5k
    num_images: int
    num_reference: int
    extractor: str
    extractor_sha256: str
    reference_digest: str


def count_label(count: int) -> str:
    """5000 as '5k', 2500 as '2500': how sample counts appear in metric names."""
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def metric_name(metric: str, *, extractor: str, images: int) -> str:
    """The full name of a score, which says extractor and sample count: score/fd_digits_5k."""
    return f"score/{metric}_{extractor}_{count_label(images)}"


class Judge:
    """Scores generators against one data set with one extractor. Every rank builds one and calls
    it.
    """

    def __init__(
        self,
        extractor: Extractor,
        shards: ShardSet,
        *,
        world: World | None = None,
        device: torch.device | str = "cpu",
    ):
        self.extractor, self.shards = extractor, shards
        self.world = world or World.current()
        self.device = torch.device(device)
        extractor.module.to(self.device)
        self._reader = ShardReader(shards)
        self._reference: FeatureMoments | None = None

    def score(
        self,
        generator: nn.Module,
        *,
        latent_dim: int,
        conditioning: Conditioning,
        images: int,
        progress: Progress = lambda done, total: None,
    ) -> Score:
        """Frechet distance and KID of `images` samples at fixed latents, the same at any world
        size.

        Labels to forge under are the data's own. Raises ValueError where a feature is not finite.
        Every rank must call this.
        """
        real = self._reference = self._reference or self._measure_reference(progress)
        fake = FeatureMoments.zeros(self.extractor.dim, device=self.device)
        blocks = self._my_blocks(images)
        first = next(generator.parameters())
        for done, block in enumerate(blocks):
            z = latents(SEED, "evaluate", block.start, batch_size=BLOCK, latent_dim=latent_dim)
            labels = None
            if conditioning != "none":
                numbers = np.arange(block.start, block.stop) % self.shards.num_images
                labels = self._reader.labels(numbers).to(first.device)
            with torch.no_grad():
                samples = to_uint8(generator(z[: len(block)].to(first), labels))
            fake.add(self.extractor(samples.to(self.device)))
            progress(done + 1, len(blocks))
        fake = fake.reduce(self.world)
        values = {"fd": frechet_distance(fake, real), "kid": kid(fake, real)}
        return Score(
            metrics={
                metric_name(name, extractor=self.extractor.name, images=images): value
                for name, value in values.items()
                if value is not None
            },
            num_images=images,
            num_reference=int(real.count.item()),
            extractor=self.extractor.name,
            extractor_sha256=self.extractor.sha256,
            reference_digest=self.shards.digest,
        )

    def _measure_reference(self, progress: Progress) -> FeatureMoments:
        if self.shards.num_images < 2:
            raise ConfigError([f"{self.shards.uri} holds too few images to judge against"])
        moments = FeatureMoments.zeros(self.extractor.dim, device=self.device)
        blocks = self._my_blocks(self.shards.num_images)
        for done, block in enumerate(blocks):
            images, _ = self._reader.take(np.arange(block.start, block.stop))
            moments.add(self.extractor(images.to(self.device)))
            progress(done + 1, len(blocks))
        return moments.reduce(self.world)

    def _my_blocks(self, count: int) -> list[range]:
        """This rank's blocks of range(count): every world-size-th, so no image counts twice."""
        blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
        return blocks[self.world.rank :: self.world.size]

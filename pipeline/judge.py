"""The judge in training: a generator's score from moments, each worker judging its share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from gan.config import Conditioning, ConfigError
from gan.features import Extractor
from gan.moments import FeatureMoments
from gan.randomness import latents
from gan.sampling import to_uint8
from gan.tally import RealSide, Tally
from gan.world import World
from pipeline.data_config import CACHE_GB
from pipeline.dataset import ShardSet
from pipeline.protocol import BLOCK, Protocol, metric_name, protocol_for
from pipeline.shards import ShardReader
from pipeline.storage import Storage

SEED = 0  # of the latents judged: the same for every run, so that scores differ by generator alone
STREAM = "evaluate"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Score:
    """How far a generator is from a reference, and how that was found."""

    metrics: dict[str, float]  # by full name: score/fd_digits_5k
    protocol: Protocol


class Judge:
    """Scores generators against one data set with one extractor.

    Every rank builds one and calls it. With a `cache`, a folder that all ranks see, the reals are
    measured once for all runs on the same data and extractor; `cache_gb` is for remote shards.
    """

    def __init__(
        self,
        extractor: Extractor,
        shards: ShardSet,
        *,
        world: World | None = None,
        device: torch.device | str = "cpu",
        cache: Storage | None = None,
        cache_gb: float = CACHE_GB,
    ):
        self.extractor, self.shards, self.cache = extractor, shards, cache
        self.world = world or World.current()
        self.device = torch.device(device)
        extractor.module.to(self.device)
        self._reader = ShardReader(shards, cache_gb=cache_gb)
        self._real: RealSide | None = None

    def score(
        self,
        generator: nn.Module,
        *,
        latent_dim: int,
        conditioning: Conditioning,
        images: int,
        seed: int = SEED,
        progress: Progress = lambda done, total: None,
    ) -> Score:
        """Frechet distance, KID and diversity of `images` samples at fixed latents, the same at
        any world size; with standard errors where there are images enough (see `Tally.measures`).

        Labels to forge under are the data's own. Raises ValueError where a feature is not finite.
        Every rank must call this.
        """
        protocol = protocol_for(
            self.shards,
            self.extractor,
            num_images=images,
            labels="none" if conditioning == "none" else "data",
            latents=f"{STREAM}/{seed}",
        )
        if self._real is None:
            self._real = RealSide.of(self._measure_reals(protocol, progress))
        fakes = Tally(self.extractor.dim, num_images=images, device=self.device)
        blocks = self._my_blocks(images)
        first = next(generator.parameters())
        for done, block in enumerate(blocks):
            z = latents(seed, STREAM, block.start, batch_size=BLOCK, latent_dim=latent_dim)
            labels = None
            if conditioning != "none":
                numbers = np.arange(block.start, block.stop) % self.shards.num_images
                labels = self._reader.labels(numbers).to(first.device)
            with torch.no_grad():
                samples = to_uint8(generator(z[: len(block)].to(first), labels))
            fakes.add(self.extractor(samples.to(self.device)), first=block.start)
            progress(done + 1, len(blocks))
        metrics = {
            metric_name(name, self.extractor, images=images): value
            for name, value in fakes.measures(self._real, self.world).items()
        }
        return Score(metrics, protocol)

    def _measure_reals(self, protocol: Protocol, progress: Progress) -> FeatureMoments:
        if self.shards.num_images < 2:
            raise ConfigError([f"{self.shards.uri} holds too few images to judge against"])
        name = f"moments-{protocol.reference_sha256[:32]}.safetensors"
        kept = self._agreed_to_be_there(name)
        if kept is not None:
            return kept
        moments = FeatureMoments.zeros(self.extractor.dim, device=self.device)
        blocks = self._my_blocks(self.shards.num_images)
        for done, block in enumerate(blocks):
            images, _ = self._reader.take(np.arange(block.start, block.stop))
            moments.add(self.extractor(images.to(self.device)))
            progress(done + 1, len(blocks))
        moments = moments.reduce(self.world)
        if self.cache is not None and self.world.is_first:
            _write_moments(self.cache, name, moments)
        return moments

    def _agreed_to_be_there(self, name: str) -> FeatureMoments | None:
        """The kept moments, where rank 0 can read them: all ranks must go the same way."""
        if self.cache is None:
            return None
        seen = self.world.is_first and _read_moments(self.cache, name) is not None
        if self.world.sum_number(float(seen)) == 0:
            return None
        kept = _read_moments(self.cache, name, device=self.device)
        assert kept is not None, f"rank {self.world.rank} does not see {self.cache.uri}/{name}"
        return kept

    def _my_blocks(self, count: int) -> list[range]:
        """This rank's blocks of range(count): every world-size-th, so no image counts twice."""
        blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
        return blocks[self.world.rank :: self.world.size]


def _read_moments(
    cache: Storage, name: str, *, device: torch.device | str = "cpu"
) -> FeatureMoments | None:
    """Moments that were kept; None where there are none, or they cannot be read any more."""
    try:
        kept = safetensors.torch.load(cache.read(name))
    except (FileNotFoundError, SafetensorError):
        return None
    parts = {key: value.to(device) for key, value in kept.items()}
    return FeatureMoments(
        count=parts["count"],
        first=parts["first"],
        second=parts["second"],
        third=parts.get("third"),
        kernel_diagonal=parts["kernel_diagonal"],
    )


def _write_moments(cache: Storage, name: str, moments: FeatureMoments) -> None:
    named = {part.name: getattr(moments, part.name) for part in dataclasses.fields(moments)}
    kept = {key: value.cpu() for key, value in named.items() if value is not None}
    cache.write(name, safetensors.torch.save(kept))

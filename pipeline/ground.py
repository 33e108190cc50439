"""What generators are judged on: the real images, and the eye that looks at all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gan.config import ConfigError
from pipeline.dataset import ShardSet, open_shards
from pipeline.evidence import NUM_GROUPS, Reference
from pipeline.experiment_file import experiment_from_dict
from pipeline.extraction import Each, Eye, Features, extract, eye_of, reals
from pipeline.order import permute
from pipeline.protocol import Protocol, protocol_for
from pipeline.shards import verify_shards
from pipeline.snapshot import Snapshot

Told = Callable[[str, int, int], None]  # what is looked at, chunks done, chunks in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The same for all who are compared; features are kept below `storage`."""

    real: ShardSet  # what generated images are compared with
    training: ShardSet | None = None  # what may have been copied, where `real` is held out
    eye: Eye
    storage: str

    @property
    def copied(self) -> ShardSet:
        """The images that a generator may have memorized."""
        return self.training or self.real

    def reference(self, each: Each, told: Told, *, groups: int = NUM_GROUPS) -> Reference:
        """All that comparisons share of the real side. Raises ConfigError for too few images."""
        real = self._features(self.real, each, told, what="real images")
        training = None
        if self.training is not None:
            training = self._features(self.training, each, told, what="training images").vectors
        return Reference.of(real.vectors, real.labels, training=training, num_groups=groups)

    def _features(self, shards: ShardSet, each: Each, told: Told, *, what: str) -> Features:
        found = extract(
            reals(self.eye, shards, storage=self.storage),
            images=shards.num_images,
            each=each,
            progress=lambda done, total: told(what, done, total),
        )
        order = torch.from_numpy(order_of(shards))
        return Features(
            found.vectors[order], None if found.labels is None else found.labels[order]
        )

    def protocol(self, snapshot: Snapshot, *, num_images: int, latents: str) -> Protocol:
        """The record of judging this generator here."""
        return protocol_for(
            self.real,
            self.eye.open(self.real.sample.shape),
            num_images=num_images,
            labels="none" if snapshot.card.conditioning == "none" else "drawn",
            latents=latents,
            training_digest=self.training.digest if self.training else None,
        )

    def check(self, snapshot: Snapshot, *, who: str) -> None:
        """Raises ConfigError where this generator cannot be judged here."""
        mistakes = []
        drawn, real = snapshot.card.sample.shape, self.real.sample.shape
        if drawn != real:
            mistakes.append(f"{who} draws {drawn}, the data at {self.real.uri} has {real}")
        if snapshot.card.classes and snapshot.card.classes != self.real.classes:
            mistakes.append(
                f"{who} knows the classes {snapshot.card.classes}, "
                f"the data has {self.real.classes}"
            )
        if mistakes:
            raise ConfigError(mistakes)


def order_of(shards: ShardSet) -> np.ndarray:
    """Which image stands where among the features of a set: an order of its own, because data
    sets are sorted by class, and groups of images must be alike.
    """
    return permute(np.arange(shards.num_images), size=shards.num_images, key=0)


def ground_for(
    snapshot: Snapshot,
    *,
    against: str | None = None,
    held_out: str | None = None,
    extractor: str | None = None,
    weights: str | None = None,
    weights_sha256: str | None = None,
    storage: str,
) -> Ground:
    """The ground that is named; what is left out is what `snapshot` was trained and judged on.

    With `held_out`, generated images are compared with those, and `against` is what may have been
    copied. Raises ConfigError where data is not whole, or the two sets do not fit each other.
    """
    trained_by = experiment_from_dict(snapshot.card.lineage["experiment"])
    shards = open_shards(against or trained_by.data.shards)
    verify_shards(shards)
    eye = eye_of(trained_by.evaluate)
    if extractor is not None:
        eye = Eye(extractor=extractor, weights=weights, weights_sha256=weights_sha256)
    if held_out is None:
        return Ground(real=shards, eye=eye, storage=storage)
    apart = open_shards(held_out)
    verify_shards(apart)
    if (apart.sample, apart.classes) != (shards.sample, shards.classes):
        raise ConfigError(
            [
                f"--held-out must be images like those trained on, {shards.sample} of classes "
                f"{shards.classes}, got {apart.sample} of {apart.classes}"
            ]
        )
    if apart.digest == shards.digest:
        raise ConfigError(["--held-out must be other images than those trained on"])
    return Ground(real=apart, training=shards, eye=eye, storage=storage)

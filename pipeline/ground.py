"""What generators are judged on: the real images, and the eye that looks at all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gan.config import ConfigError
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment_file import experiment_from_dict
from pipeline.extraction import Each, Eye, Features, eye_of, extract, reals
from pipeline.loader import permute
from pipeline.shards import verify_shards
from pipeline.snapshot import Snapshot

Told = Callable[[str, int, int], None]  # what is looked at, chunks done, chunks in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The same for all who are compared; features are kept below `storage`."""

    shards: ShardSet
    held_out: ShardSet | None = None  # images that no generator was trained on
    eye: Eye
    storage: str

    def reals(self, each: Each, told: Told) -> Features:
        """Features of the real images, in the order of `real_numbers`."""
        found = extract(
            reals(self.eye, self.shards, storage=self.storage),
            images=self.shards.num_images,
            each=each,
            progress=lambda done, total: told("real images", done, total),
        )
        order = torch.from_numpy(self.real_numbers)
        return Features(found.vectors[order], None if found.labels is None else found.labels[order])

    def held_out_features(self, each: Each, told: Told) -> torch.Tensor | None:
        """Features (n, d) of the held-out images; None where there are none."""
        if self.held_out is None:
            return None
        return extract(
            reals(self.eye, self.held_out, storage=self.storage),
            images=self.held_out.num_images,
            each=each,
            progress=lambda done, total: told("held-out images", done, total),
        ).vectors

    @property
    def real_numbers(self) -> np.ndarray:
        """Which image stands where: an order of its own, because data sets are sorted by class,
        and groups of images must be alike.
        """
        count = self.shards.num_images
        return permute(np.arange(count), size=count, key=0)

    def check(self, snapshot: Snapshot, *, who: str) -> None:
        """Raises ConfigError where this generator cannot be judged here."""
        mistakes = []
        drawn, real = snapshot.card.sample.shape, self.shards.sample.shape
        if drawn != real:
            mistakes.append(f"{who} draws {drawn}, the data at {self.shards.uri} has {real}")
        if snapshot.card.classes and snapshot.card.classes != self.shards.classes:
            mistakes.append(
                f"{who} knows the classes {snapshot.card.classes}, "
                f"the data has {self.shards.classes}"
            )
        if mistakes:
            raise ConfigError(mistakes)


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

    Raises ConfigError where the data is not whole, the two sets differ in shape, or the held-out
    set is the training set.
    """
    trained_by = experiment_from_dict(snapshot.card.lineage["experiment"])
    shards = open_shards(against or trained_by.data.shards)
    verify_shards(shards)
    apart = None
    if held_out is not None:
        apart = open_shards(held_out)
        verify_shards(apart)
        if apart.sample.shape != shards.sample.shape:
            raise ConfigError(
                [f"--held-out has {apart.sample.shape}, the data has {shards.sample.shape}"]
            )
        if apart.digest == shards.digest:
            raise ConfigError(["--held-out must be other images than those trained on"])
    eye = eye_of(trained_by.evaluate)
    if extractor is not None:
        eye = Eye(extractor=extractor, weights=weights, weights_sha256=weights_sha256)
    return Ground(shards=shards, held_out=apart, eye=eye, storage=storage)

"""A challenger against the champion: forged at the same latents, looked at, compared; and more of
both where that is too few to tell.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan.config import ConfigError, check
from pipeline.dataset import ShardSet
from pipeline.extraction import Each, Eye, Features, Look, extract, forgeries, forget, reals
from pipeline.gate import Comparison, GateRules, Reference, compare, qualify
from pipeline.loader import permute
from pipeline.protocol import Protocol, protocol_for
from pipeline.snapshot import Snapshot

log = logging.getLogger(__name__)

STREAM = "gate"  # of latents and labels; no run and no search draws from it
Told = Callable[[str, int, int], None]  # what is looked at, chunks done, chunks in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many images are judged: `first`, and up to `most` where that is too few to tell."""

    first: int = 10_000
    most: int = 50_000

    def __post_init__(self) -> None:
        check(
            (self.first >= 100, f"images must be >= 100, got {self.first}"),
            (
                self.most >= self.first,
                f"max-images must be at least images, got {self.most} for {self.first}",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What both are judged against and through, and where features are kept."""

    shards: ShardSet
    held_out: ShardSet | None = None  # images that neither was trained on
    eye: Eye
    storage: str

    def reference(self, each: Each, told: Told, *, rules: GateRules) -> Reference:
        """The real side: in an order of its own, because folders are sorted by class and groups
        of images must be alike.
        """
        images = self.shards.num_images
        found = extract(
            reals(self.eye, self.shards, storage=self.storage),
            images=images,
            each=each,
            progress=lambda done, total: told("real images", done, total),
        )
        held_out = None
        if self.held_out is not None:
            held_out = extract(
                reals(self.eye, self.held_out, storage=self.storage),
                images=self.held_out.num_images,
                each=each,
                progress=lambda done, total: told("held-out images", done, total),
            ).vectors
        order = torch.from_numpy(shuffled(images))
        labels = None if found.labels is None else found.labels[order]
        return Reference.of(found.vectors[order], labels, held_out=held_out, rules=rules)


def shuffled(count: int) -> np.ndarray:
    """The numbers below `count` in the order in which the reference holds the real images."""
    return permute(np.arange(count), size=count, key=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """How a challenger fared, and all that was looked at."""

    comparison: Comparison
    protocol: Protocol
    alpha: float
    paired: bool  # whether both forged from the same latents
    champion: Look | None
    challenger: Look
    nearest: Tensor  # of the challenger's most suspicious images: numbers of the training images
    suspicious: Tensor  # and theirs
    seconds: float


def hold(
    champion: Snapshot | None,
    challenger: Snapshot,
    ground: Ground,
    *,
    rules: GateRules,
    alpha: float,
    seed: int,
    counts: Counts,
    each: Each,
    told: Told = lambda what, done, total: None,
) -> Contest:
    """Judges the challenger, growing the number of images until the difference can be resolved.

    Growth looks at the error alone, never at which way the difference points, so looking again
    does not make a false promotion likelier. Without a champion the challenger must clear the
    absolute floors. Raises ConfigError where the two cannot be judged on this ground.
    """
    started = time.monotonic()
    _check_plays_here(challenger, ground, "the candidate")
    if champion is not None:
        _check_plays_here(champion, ground, "the champion")
    reference = ground.reference(each, told, rules=rules)
    paired = champion is not None and _latent_dim(champion) == _latent_dim(challenger)
    theirs = _look(challenger, ground, STREAM if paired else f"{STREAM}/challenger", seed)
    ours = None if champion is None else _look(champion, ground, STREAM, seed)
    count = counts.first
    while True:
        forged = _forged(theirs, count, each, told, "the candidate's images")
        if ours is None:
            comparison = qualify(forged.vectors, forged.labels, reference, rules=rules)
            break
        defended = _forged(ours, count, each, told, "the champion's images")
        comparison = compare(
            defended.vectors, forged.vectors, reference, rules=rules, alpha=alpha, paired=paired
        )
        if comparison.resolved or count >= counts.most:
            break
        count = min(2 * count, counts.most)
        log.info("too close to tell; judging %d images", count)
    shards, extractor = ground.shards, ground.eye.open(ground.shards.sample.shape)
    conditional = challenger.card.conditioning != "none"
    return Contest(
        comparison=comparison,
        protocol=protocol_for(
            shards,
            extractor,
            num_images=count,
            labels="drawn" if conditional else "none",
            latents=f"{STREAM}/{seed}",
        ),
        alpha=alpha,
        paired=paired,
        champion=ours,
        challenger=theirs,
        nearest=torch.empty(0),
        suspicious=torch.empty(0),
        seconds=time.monotonic() - started,
    )

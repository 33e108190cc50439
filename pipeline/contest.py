"""A challenger against the champion: forged at the same latents, looked at, compared; and more of
both where that is too few to tell.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass

from torch import Tensor

from gan.config import check
from pipeline.evidence import Evidence, Reference, judge
from pipeline.extraction import CHUNK, Each, Look, extract, forgeries, forget
from pipeline.gate import Comparison, GateRules, compare, qualify
from pipeline.ground import Ground, Told
from pipeline.measures import Measures
from pipeline.protocol import Protocol
from pipeline.snapshot import Snapshot

log = logging.getLogger(__name__)

MAX_LOOKS = 2
STREAM = "gate"  # of latents and labels; no run and no search draws from it


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


@dataclass(frozen=True, slots=True)
class Contestant:
    """A generator, where its features are, and what was found."""

    snapshot: Snapshot
    look: Look
    vectors: Tensor  # (n, d), the features of its images
    evidence: Evidence

    @property
    def measures(self) -> Measures:
        """Every measure with its error."""
        return self.evidence.measures


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """How a challenger fared, and all that was looked at."""

    comparison: Comparison
    protocol: Protocol
    paired: bool  # whether both forged from the same latents
    champion: Contestant | None
    challenger: Contestant
    reference: Reference

    def forget(self) -> None:
        """Removes the features of both; nobody draws from these latents again."""
        for contestant in (self.champion, self.challenger):
            if contestant is not None:
                forget(contestant.look)


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
    """Judges the challenger, and once more with more images where the first ones cannot tell.

    Each of two looks is at half of `alpha`, so that together they promote an equal no more often
    than `alpha` says (Bonferroni), whatever the first one showed. How many images the second look
    takes follows from the errors. Without a champion the challenger must clear the absolute
    floors. Raises ConfigError where the two cannot be judged on this ground.
    """
    ground.check(challenger, who="the candidate")
    if champion is not None:
        ground.check(champion, who="the champion")
    reference = ground.reference(each, told, groups=rules.groups)
    paired = champion is not None and _latent_dim(champion) == _latent_dim(challenger)
    count = counts.first

    def contestant(snapshot: Snapshot, who: str, *, stream: str = STREAM) -> Contestant:
        look = forgeries(
            snapshot, ground.eye, ground.real, stream=stream, seed=seed, storage=ground.storage
        )
        found = extract(look, images=count, each=each, progress=lambda done, n: told(who, done, n))
        evidence = judge(found.vectors, found.labels, reference)
        return Contestant(snapshot, look, found.vectors, evidence)

    looks = 1 if champion is None or counts.most == counts.first else MAX_LOOKS
    while True:
        # Latents of other lengths have nothing in common and must not seem to.
        theirs = contestant(
            challenger, "candidate", stream=STREAM if paired else f"{STREAM}/challenger"
        )
        ours = None if champion is None else contestant(champion, "champion")
        if ours is None:
            comparison = qualify(theirs.evidence, reference, rules=rules)
        else:
            comparison = compare(
                ours.evidence, theirs.evidence, reference, rules=rules, alpha=alpha / looks,
                paired=paired,
            )  # fmt: skip
        if comparison.outcome != "unresolved" or count == counts.most:
            break
        count = min(counts.most, max(2 * count, _whole_chunks(comparison.images_needed)))
        if champion is not None:
            counts = Counts(first=count, most=count)  # the second look is the last
        log.info("%d images cannot tell; judging %d", comparison.num_images, count)
    return Contest(
        comparison=comparison,
        protocol=ground.protocol(challenger, num_images=count, latents=f"{STREAM}/{seed}"),
        paired=paired,
        champion=ours,
        challenger=theirs,
        reference=reference,
    )


def _whole_chunks(images: int) -> int:
    return math.ceil(images / CHUNK) * CHUNK


def _latent_dim(snapshot: Snapshot) -> int:
    return snapshot.card.generator.latent_dim


def record(contest: Contest) -> dict[str, object]:
    """What was found, as plain data for JSON."""
    return {
        "common_latents": contest.paired,
        "protocol": dataclasses.asdict(contest.protocol),
        "protocol_sha256": contest.protocol.sha256,
        "comparison": dataclasses.asdict(contest.comparison),
        "champion": contest.champion and dataclasses.asdict(contest.champion.measures),
        "challenger": dataclasses.asdict(contest.challenger.measures),
    }

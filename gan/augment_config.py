"""The dials of what D sees instead of the images themselves; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gan.rules import check
from gan.schedules import Schedule, Steps, bounds, shown

Policy = Literal[
    "color",
    "translation",
    "cutout",
    "flip",
    "quarters",
    "scale",
    "rotation",
    "stretch",
    "luma",
    "hue",
]

# Of these a random one is no different from the image itself once all are augmented: as many are
# mirrored, turned, dark or blue as are not.
LEAKING: tuple[Policy, ...] = ("flip", "quarters", "rotation", "luma", "hue")


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Differentiable augmentation of all that D sees, in both turns: "color", "translation" and
    "cutout" of Zhao et al. 2020; from the pipeline of Karras et al. 2020 (NeurIPS) "flip",
    "quarters" (turns by 90 degrees), "scale" (size and place by fractions), "rotation" (by any
    angle), "stretch" (one side against the other), "luma" (light for dark) and "hue" (colours
    turned about the greys, of images of 3 channels).

    Each policy is applied to an image with `probability`; penalties are on the images before it.
    G draws the images before it as long as D can tell what was applied: with "flip", "quarters",
    "rotation", "luma" and "hue" only while some are left as they are, 0.8 at most as a rule
    (Karras et al. 2020, section 2.2).

    With a `target` the probability follows how much D overfits, by r_t = E sign D(real): it begins
    at 0, is never above `probability`, and may cross all of [0, 1] in `adapt_kimg`. A target of
    0.6 is the paper's, for a D whose zero means something. In games that leave it open (the
    relativistic ones and Wasserstein's) r_t is of pairs, E sign(D(real) - D(fake)), which is
    larger: of logits that are normal 0.77 where it would be 0.6.
    """

    policies: tuple[Policy, ...] = ()
    probability: float | Schedule | Steps = 1.0
    target: float | None = None
    adapt_kimg: float = 500.0

    def __post_init__(self) -> None:
        low, high = bounds(self.probability)
        leaking = [repr(policy) for policy in self.policies if policy in LEAKING]
        check(
            (
                len(set(self.policies)) == len(self.policies),
                f"policies must be named once each, got {list(self.policies)}",
            ),
            (
                0 <= low <= high <= 1,
                f"probability must be in [0, 1], got {shown(self.probability)}",
            ),
            (
                self.target is not None or high < 1 or not leaking,
                f"probability must be below 1 with {', '.join(leaking)}: where every image is "
                f"augmented G draws augmented ones, and up to 0.8 it is safe as a rule "
                f"(Karras et al. 2020), got {shown(self.probability)}",
            ),
            (
                self.target is None or 0 < self.target < 1,
                f"target must be between 0 and 1, got {self.target}",
            ),
            (
                self.target is None or bool(self.policies),
                f"target is for augmentations: name some in policies, got {self.target} with none",
            ),
            (
                self.target is None or not isinstance(self.probability, Schedule | Steps),
                f"probability must be one number with a target, which moves it, "
                f"got {shown(self.probability)}",
            ),
            (
                0 < self.adapt_kimg < math.inf,
                f"adapt_kimg must be > 0 and finite, got {self.adapt_kimg}",
            ),
        )
        object.__setattr__(self, "policies", tuple(self.policies))

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


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Differentiable augmentation of all that D sees, in both turns: "color", "translation" and
    "cutout" of Zhao et al. 2020; from the pipeline of Karras et al. 2020 (NeurIPS) "flip",
    "quarters" (turns by 90 degrees), "scale" (size and place by fractions), "rotation" (by any
    angle), "stretch" (one side against the other), "luma" (light for dark) and "hue" (colours
    turned about the greys, of images of 3 channels).

    Each policy is applied to an image with `probability`; penalties are on the images before it.
    With a `target` the probability follows how much D overfits, by r_t = E sign D(real): it begins
    at 0, is never above `probability`, and may cross all of [0, 1] in `adapt_kimg`. A target of
    0.6 is the paper's.
    """

    policies: tuple[Policy, ...] = ()
    probability: float | Schedule | Steps = 1.0
    target: float | None = None
    adapt_kimg: float = 500.0

    def __post_init__(self) -> None:
        low, high = bounds(self.probability)
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

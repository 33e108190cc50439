"""The dials of what the players descend: objectives and penalties; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gan.rules import check
from gan.schedules import Schedule, Steps, bounds, not_negative, shown

ObjectiveName = Literal[
    "minimax",
    "nonsaturating",
    "least-squares",
    "hinge",
    "wasserstein",
    "relativistic",
    "relativistic-average",
]
PenaltyMethod = Literal["exact", "differences"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What each player descends (`gan.objectives`), and the penalties that keep D smooth.

    The two are chosen apart: R1 and R2 are paid with every objective until they are set to 0, as
    they are in the games of Goodfellow, of least squares, hinge and WGAN-GP as published.

    r1_gamma weighs gamma/2 E|grad D(x)|^2 on reals, r2_gamma the same on fakes (Mescheder et al.
    2018, eq. 9; both together: Huang et al. 2024, arXiv 2501.05441). gp_lambda weighs
    lambda E(|grad D(x)| - gp_target)^2 between pairs of a real and a fake: gp_target 1 is WGAN-GP
    (Gulrajani et al. 2017, eq. 3), 0 is centred at zero (Thanh-Tung et al. 2019, eq. 6). Every
    `penalty_interval`-th D turn pays them, times the interval, so that their mean strength does
    not depend on it.

    path_length_weight weighs (|J_w^T y| - its mean)^2 in every `path_length_interval`-th turn of a
    stylegan2 G, times the interval (Karras et al. 2020, eq. 4; 2 is the paper's).

    info_weight weighs what D misreads of G's codes, in both players' losses (Chen et al. 2016,
    eq. 6); it counts where the generator has codes.

    penalty_method "differences" estimates R1 and R2 without a second derivative, from D at points
    `penalty_sigma` away (Lin et al. 2025, arXiv 2501.08316).
    """

    name: ObjectiveName = "relativistic"
    r1_gamma: float | Schedule | Steps = 1.0
    r2_gamma: float | Schedule | Steps = 1.0
    gp_lambda: float | Schedule | Steps = 0.0
    gp_target: float = 1.0
    penalty_interval: int = 1
    penalty_method: PenaltyMethod = "exact"
    penalty_sigma: float = 0.01  # on the scale of samples: images lie in [-1, 1]
    path_length_weight: float = 0.0
    path_length_interval: int = 4
    info_weight: float = 1.0
    weight_clip: float | None = None  # wasserstein: D's weights stay within +- this; 0.01 of old

    def __post_init__(self) -> None:
        weights = ("r1_gamma", "r2_gamma", "gp_lambda")
        check(
            *(not_negative(name, getattr(self, name)) for name in weights),
            (
                0 <= self.gp_target < math.inf,
                f"gp_target must be >= 0 and finite, got {self.gp_target}",
            ),
            (
                self.penalty_interval >= 1,
                f"penalty_interval must be >= 1 (every turn), got {self.penalty_interval}",
            ),
            (
                0 < self.info_weight < math.inf,
                f"info_weight must be > 0 and finite, got {self.info_weight}",
            ),
            (
                0 <= self.path_length_weight < math.inf,
                f"path_length_weight must be >= 0 and finite, got {self.path_length_weight}",
            ),
            (
                self.path_length_interval >= 1,
                f"path_length_interval must be >= 1 (every turn), got {self.path_length_interval}",
            ),
            (
                0 < self.penalty_sigma < math.inf,
                f"penalty_sigma must be > 0 and finite, got {self.penalty_sigma}",
            ),
            (
                self.penalty_method == "exact" or bounds(self.gp_lambda)[1] == 0,
                f"gp_lambda must be 0 with penalty_method = 'differences', which estimates R1 and "
                f"R2 only, got {shown(self.gp_lambda)}",
            ),
            (
                self.weight_clip is None or 0 < self.weight_clip < math.inf,
                f"weight_clip must be > 0 and finite, got {self.weight_clip}",
            ),
            (
                self.weight_clip is None or self.name == "wasserstein",
                f"weight_clip is for name = 'wasserstein' only, "
                f"got {self.weight_clip} with name = '{self.name}'",
            ),
        )

    @property
    def penalized(self) -> bool:
        """Whether any penalty is ever paid."""
        weights = (self.r1_gamma, self.r2_gamma, self.gp_lambda)
        return any(bounds(weight)[1] > 0 for weight in weights)

    @property
    def relative(self) -> bool:
        """Whether G's loss looks at reals too."""
        return self.name in ("relativistic", "relativistic-average")

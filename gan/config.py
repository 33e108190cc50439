"""Every dial of the game as frozen dataclasses; imports no torch, so that help and dry runs stay
instant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from gan.player_config import DiscriminatorConfig, GeneratorConfig, Network, Norm, PlayerConfig
from gan.rules import ConfigError, check, check_all
from gan.schedules import Schedule, Steps, bounds, is_whole, shown, value_at

__all__ = [
    "Conditioning",
    "ConditioningConfig",
    "ConfigError",
    "DiscriminatorConfig",
    "EmaConfig",
    "GameConfig",
    "GeneratorConfig",
    "Network",
    "Norm",
    "ObjectiveConfig",
    "ObjectiveName",
    "PlayerConfig",
    "Precision",
    "Sample",
    "Schedule",
    "Steps",
    "TurnsConfig",
    "check",
    "check_all",
    "check_sample",
    "value_at",
]

ObjectiveName = Literal[
    "minimax",
    "nonsaturating",
    "least-squares",
    "hinge",
    "wasserstein",
    "relativistic",
    "relativistic-average",
]
Conditioning = Literal["none", "projection"]
Precision = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What each player descends (`gan.objectives`), and the gradient penalties that keep D smooth.

    r1_gamma weighs gamma/2 E|grad D(x)|^2 on reals, r2_gamma the same on fakes (Mescheder et al.
    2018, eq. 9; both together: Huang et al. 2024, arXiv 2501.05441). Every `penalty_interval`-th D
    turn pays them, times the interval, so that their mean strength does not depend on it.
    """

    name: ObjectiveName = "relativistic"
    r1_gamma: float | Schedule | Steps = 1.0
    r2_gamma: float | Schedule | Steps = 1.0
    penalty_interval: int = 1

    def __post_init__(self) -> None:
        check(
            (
                bounds(self.r1_gamma)[0] >= 0 and bounds(self.r1_gamma)[1] < math.inf,
                f"r1_gamma must be >= 0 and finite, got {shown(self.r1_gamma)}",
            ),
            (
                bounds(self.r2_gamma)[0] >= 0 and bounds(self.r2_gamma)[1] < math.inf,
                f"r2_gamma must be >= 0 and finite, got {shown(self.r2_gamma)}",
            ),
            (
                self.penalty_interval >= 1,
                f"penalty_interval must be >= 1 (every turn), got {self.penalty_interval}",
            ),
        )

    @property
    def penalized(self) -> bool:
        """Whether any penalty is ever paid."""
        return bounds(self.r1_gamma)[1] > 0 or bounds(self.r2_gamma)[1] > 0

    @property
    def relative(self) -> bool:
        """Whether G's loss looks at reals too."""
        return self.name in ("relativistic", "relativistic-average")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditioningConfig:
    """Whether the players see class labels.

    "projection": G sees an embedding beside z, D adds <embedding, features> to its logit (Miyato &
    Koyama 2018, eq. 4).
    """

    name: Conditioning = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnsConfig:
    """How long the game lasts and how the players alternate.

    Time is counted in images that D saw.
    """

    total_kimg: float = 1000.0
    batch_size: int = 64  # global: workers split it
    micro_batch: int | None = None  # most images a worker holds at once; gradients accumulate
    d_steps: int | Steps = 1
    g_steps: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check(
            (
                0 < self.total_kimg < 1e9,
                f"total_kimg must be > 0 and finite, got {self.total_kimg}",
            ),
            (self.batch_size >= 1, f"batch_size must be >= 1, got {self.batch_size}"),
            (
                self.micro_batch is None or self.micro_batch >= 1,
                f"micro_batch must be >= 1, got {self.micro_batch}",
            ),
            (
                bounds(self.d_steps)[0] >= 1 and is_whole(self.d_steps),
                f"d_steps must be >= 1 and whole, got {shown(self.d_steps)}",
            ),
            (self.g_steps >= 1, f"g_steps must be >= 1, got {self.g_steps}"),
        )

    @property
    def total_nimg(self) -> int:
        """The run's length in images."""
        return round(self.total_kimg * 1000)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmaConfig:
    """The moving average of G that is judged, sampled and promoted.

    Half-life in thousands of images; 0 means G_ema = G. The half-life is never longer than
    `ramp_up` times the images seen, so that early averages forget the start (as StyleGAN2-ADA
    does).
    """

    half_life_kimg: float | Steps = 10.0
    ramp_up: float = 0.05  # 0: the whole half-life from the start

    def __post_init__(self) -> None:
        check(
            (
                bounds(self.half_life_kimg)[0] >= 0 and bounds(self.half_life_kimg)[1] < math.inf,
                f"half_life_kimg must be >= 0 and finite, got {shown(self.half_life_kimg)}",
            ),
            (
                0 <= self.ramp_up < math.inf,
                f"ramp_up must be >= 0 and finite, got {self.ramp_up}",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GameConfig:
    """The rules of one game, complete: all that the weights depend on besides the data and the
    seed.
    """

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    def __post_init__(self) -> None:
        check(
            (
                not (self.discriminator.norm == "batch" and self.objective.penalized),
                "discriminator.norm must be 'none' or 'group' where r1_gamma or r2_gamma is set "
                "(BatchNorm makes one image's gradient depend on the others), got 'batch'",
            ),
            (
                self.objective.name != "relativistic-average" or self.turns.micro_batch is None,
                f"turns.micro_batch must be left out with objective.name = "
                f"'relativistic-average' (its means are over the whole batch), "
                f"got {self.turns.micro_batch}",
            ),
            (
                self.objective.name != "wasserstein" or self.objective.penalized,
                "objective.r1_gamma or objective.r2_gamma must be > 0 with objective.name = "
                "'wasserstein' (nothing else bounds its critic), got 0 for all",
            ),
        )

    @property
    def reals_in_g_turn(self) -> bool:
        """Whether G's turn draws fresh reals: for pairs, or for labels to forge under."""
        return self.objective.relative or self.conditioning.name != "none"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sample of the data is: its shape, and how many classes there are to ask for."""

    shape: tuple[int, ...]  # (channels, height, width), or (features,) for vectors
    num_classes: int = 0


MLP_MAX_VALUES = 128 * 128 * 3  # of one sample; more is no job for dense layers


def check_sample(config: GameConfig, sample: Sample) -> None:
    """Raises one ConfigError where these players cannot play on this data."""
    shown = " x ".join(map(str, sample.shape))
    square = len(sample.shape) == 3 and sample.shape[1] == sample.shape[2]
    size = sample.shape[-1]
    playable = square and size >= 8 and size & (size - 1) == 0
    rules = []
    for player, network in (
        ("generator", config.generator.network),
        ("discriminator", config.discriminator.network),
    ):
        rules.append(
            (
                network != "dcgan" or playable,
                f"{player}.network = 'dcgan' plays square images of 8, 16, 32, ... pixels "
                f"(4 x 2^k), got {shown}; prepare the data with --size, or choose 'mlp'",
            )
        )
        rules.append(
            (
                network != "mlp" or math.prod(sample.shape) <= MLP_MAX_VALUES,
                f"{player}.network = 'mlp' plays samples of at most {MLP_MAX_VALUES} values, "
                f"got {shown}; choose 'dcgan'",
            )
        )
    rules.append(
        (
            config.conditioning.name == "none" or sample.num_classes > 0,
            f"conditioning.name must be 'none' where the data has no labels, "
            f"got '{config.conditioning.name}'",
        )
    )
    check(*rules)

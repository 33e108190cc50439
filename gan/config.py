"""Every dial of the game as frozen dataclasses; imports no torch, so that help and dry runs stay
instant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gan.augment_config import AugmentConfig, Policy
from gan.objective_config import ObjectiveConfig, ObjectiveName, PenaltyMethod
from gan.player_config import DiscriminatorConfig, GeneratorConfig, Network, Norm, PlayerConfig
from gan.rules import ConfigError, check
from gan.schedules import Schedule, Steps, bounds, is_whole, not_negative, shown, value_at

__all__ = [
    "AugmentConfig",
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
    "PenaltyMethod",
    "PlayerConfig",
    "Policy",
    "Precision",
    "Sample",
    "Schedule",
    "Steps",
    "TurnsConfig",
    "check",
    "check_sample",
    "is_playable",
    "value_at",
]

Conditioning = Literal["none", "projection", "concatenation", "auxiliary"]
Precision = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditioningConfig:
    """Whether the players see class labels. G sees an embedding beside z; D, by name:

    "projection" adds <embedding, features> to its logit (Miyato & Koyama 2018, eq. 4);
    "concatenation" sees an embedding beside the sample (Mirza & Osindero 2014);
    "auxiliary" names the class itself, and both players descend what it gets wrong, times
    `auxiliary_weight` (Odena et al. 2017).
    """

    name: Conditioning = "none"
    auxiliary_weight: float = 1.0

    def __post_init__(self) -> None:
        check(
            (
                0 < self.auxiliary_weight < math.inf,
                f"auxiliary_weight must be > 0 and finite, got {self.auxiliary_weight}",
            )
        )

    @property
    def class_weight(self) -> float:
        """What an auxiliary classifier's mistakes weigh; 0 without one."""
        return self.auxiliary_weight if self.name == "auxiliary" else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnsConfig:
    """How long the game lasts and how the players alternate.

    Time is counted in images that D saw.
    """

    total_kimg: float = 1000.0  # thousands of images that D sees in the whole run
    batch_size: int = 64  # global: workers split it
    micro_batch: int | None = None  # most images a worker holds at once; gradients accumulate
    d_steps: int | Steps = 1  # D's turns in a round
    g_steps: int = 1  # G's
    reuse_fakes: bool = False  # G learns from what D's last turn saw, as textbook loops have it
    precision: Precision = "float32"  # a turn that pays a penalty is never in "bfloat16"
    compile: bool = False  # each player's step as one compiled function; equal up to rounding

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

    half_life_kimg: float | Schedule | Steps = 10.0
    ramp_up: float = 0.05  # 0: the whole half-life from the start

    def __post_init__(self) -> None:
        check(
            not_negative("half_life_kimg", self.half_life_kimg),
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
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check(
            (
                not (self.discriminator.norm == "batch" and self.objective.penalized),
                "discriminator.norm must be 'none', 'group' or 'spectral' where r1_gamma, "
                "r2_gamma or gp_lambda is set (BatchNorm makes one image's gradient depend on the "
                "others), got 'batch'",
            ),
            (
                not self.turns.compile
                or "batch" not in (self.generator.norm, self.discriminator.norm),
                "turns.compile must be false with norm = 'batch' (its running statistics are "
                "written in place), got true",
            ),
            (
                self.objective.name != "relativistic-average" or self.turns.micro_batch is None,
                f"turns.micro_batch must be left out with objective.name = "
                f"'relativistic-average' (its means are over the whole batch), "
                f"got {self.turns.micro_batch}",
            ),
            *self._fakes_can_be_reused(),
            (
                self.conditioning.name != "auxiliary"
                or not (self.generator.discrete_codes or self.generator.continuous_codes),
                "conditioning.name must be another one than 'auxiliary' where the generator has "
                "codes (D would have two classifiers), got 'auxiliary'",
            ),
            (
                self.objective.path_length_weight == 0 or self.generator.network == "stylegan2",
                f"objective.path_length_weight is for generator.network = 'stylegan2' only, "
                f"got {self.objective.path_length_weight} "
                f"with generator.network = '{self.generator.network}'",
            ),
            (
                self.objective.name != "wasserstein"
                or self.objective.penalized
                or self.objective.weight_clip is not None
                or self.discriminator.norm == "spectral",
                "objective.name = 'wasserstein' needs a bound on its critic: objective.gp_lambda, "
                "r1_gamma, r2_gamma or weight_clip, or discriminator.norm = 'spectral'",
            ),
        )

    def _fakes_can_be_reused(self) -> Iterator[tuple[bool, str]]:
        turns = self.turns
        for fits, setting, why, got in (
            (turns.g_steps == 1, "turns.g_steps must be 1", "they are one turn's", turns.g_steps),
            (
                turns.micro_batch is None,
                "turns.micro_batch must be left out",
                "all of them are held from D's turn to G's",
                turns.micro_batch,
            ),
            (
                not turns.compile,
                "turns.compile must be false",
                "G's step is compiled as one, its forward in it",
                "true",
            ),
            (
                self.objective.path_length_weight == 0,
                "objective.path_length_weight must be 0",
                "path lengths are of fakes of their own",
                self.objective.path_length_weight,
            ),
        ):
            said = f"{setting} with turns.reuse_fakes ({why}), got {got}"
            yield not turns.reuse_fakes or fits, said

    @property
    def reals_in_g_turn(self) -> bool:
        """Whether G's turn draws fresh reals: for pairs, or for labels to forge under."""
        needed = self.objective.relative or self.conditioning.name != "none"
        return needed and not self.turns.reuse_fakes


@dataclass(frozen=True, slots=True)
class Sample:
    """What one sample of the data is: its shape, and how many classes there are to ask for."""

    shape: tuple[int, ...]  # (channels, height, width), or (features,) for vectors
    num_classes: int = 0


MLP_MAX_VALUES = 128 * 128 * 3  # of one sample; more is no job for dense layers


def is_playable(size_px: int) -> bool:
    """Whether every network but 'mlp' plays square images of this size: 8, 16, 32, ..."""
    return size_px >= 8 and size_px & (size_px - 1) == 0


def check_sample(config: GameConfig, sample: Sample) -> None:
    """Raises one ConfigError where these players cannot play on this data."""
    shown_shape = " x ".join(map(str, sample.shape))
    square = len(sample.shape) == 3 and sample.shape[1] == sample.shape[2]
    size = sample.shape[-1]
    playable = square and is_playable(size)
    rules = []
    for player, network in (
        ("generator", config.generator.network),
        ("discriminator", config.discriminator.network),
    ):
        rules.append(
            (
                network == "mlp" or playable,
                f"{player}.network = '{network}' plays square images of 8, 16, 32, ... pixels "
                f"(4 x 2^k), got {shown_shape}; prepare the data with --size, or choose 'mlp'",
            )
        )
        rules.append(
            (
                network != "mlp" or math.prod(sample.shape) <= MLP_MAX_VALUES,
                f"{player}.network = 'mlp' plays samples of at most {MLP_MAX_VALUES} values, "
                f"got {shown_shape}; choose 'dcgan'",
            )
        )
    rules.append(
        (
            config.conditioning.name == "none" or sample.num_classes > 0,
            f"conditioning.name must be 'none' where the data has no labels, "
            f"got '{config.conditioning.name}'; prepare it with a sub-folder for each class, or "
            f"with --labels FILE",
        )
    )
    rules.append(
        (
            square or not {"quarters", "rotation"} & set(config.augment.policies),
            f"augment.policies may hold 'quarters' and 'rotation' for square images only, "
            f"got {shown_shape}",
        )
    )
    rules.append(
        (
            "hue" not in config.augment.policies or sample.shape[0] == 3,
            f"augment.policies may hold 'hue' for images of 3 channels only, got {shown_shape}",
        )
    )
    rules.append(
        (
            not config.augment.policies or len(sample.shape) == 3,
            f"augment.policies must be left out where samples are no images, "
            f"got {list(config.augment.policies)} for {shown_shape}",
        )
    )
    check(*rules)

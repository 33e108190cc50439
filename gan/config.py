"""Every dial of the game as frozen dataclasses; imports no torch, so that help and dry runs stay
instant.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

Network = Literal["dcgan", "mlp"]
Norm = Literal["none", "group", "batch"]
ObjectiveName = Literal["minimax", "nonsaturating", "relativistic"]
Conditioning = Literal["none", "projection"]
Precision = Literal["float32", "bfloat16", "float64"]


class ConfigError(ValueError):
    """One or more settings break a rule; `mistakes` holds one readable line each."""

    def __init__(self, mistakes: Iterable[str]):
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[str, ...]]]:
        return ConfigError, (self.mistakes,)  # so that it comes whole out of another process


def check(*rules: tuple[bool, str]) -> None:
    """Raises one ConfigError naming every broken rule of `rules`, pairs of (holds, message)."""
    broken = [message for holds, message in rules if not holds]
    if broken:
        raise ConfigError(broken)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A value that moves with the images seen: from `start` to `end` over `over_kimg`, then
    constant.

    `over_kimg` left out means the whole run. Cosine is half a period: flat at both ends.
    """

    shape: Literal["linear", "cosine"] = "cosine"
    start: float
    end: float
    over_kimg: float | None = None

    def __post_init__(self) -> None:
        check(
            (
                math.isfinite(self.start) and math.isfinite(self.end),
                f"start and end must be finite, got {self.start} and {self.end}",
            ),
            (
                self.over_kimg is None or self.over_kimg > 0,
                f"over_kimg must be > 0, got {self.over_kimg}",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """A value that changes at given times: value i holds from `at_kimg[i]` on, to the image.

    A round is played with the values of its start, so a game that stops at `nimg` and goes on with
    another value is, bit for bit, the game with a step at `nimg / 1000`.
    """

    at_kimg: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        at, values = list(self.at_kimg), list(self.values)
        check(
            (at[:1] == [0], f"at_kimg must begin with 0, got {at}"),
            (
                all(map(math.isfinite, at)) and all(a < b for a, b in pairwise(at)),
                f"at_kimg must be finite and increase, got {at}",
            ),
            (all(map(math.isfinite, values)), f"values must be finite, got {values}"),
            (
                len(at) == len(values),
                f"values must be as many as at_kimg, got {len(values)} for {len(at)}",
            ),
        )
        # Lists and whole numbers, too, make the equal object with the equal digest.
        object.__setattr__(self, "at_kimg", tuple(map(float, at)))
        object.__setattr__(self, "values", tuple(map(float, values)))


def value_at(setting: float | Schedule | Steps, nimg: int, *, total_nimg: int) -> float:
    """The value of a setting after `nimg` images of a run of `total_nimg` images."""
    if isinstance(setting, Steps):
        # Rounded, since 10.048 kimg times 1000 is no whole number of images in floating point.
        begins = [round(kimg * 1000) for kimg in setting.at_kimg]
        return setting.values[bisect_right(begins, nimg) - 1]
    if not isinstance(setting, Schedule):
        return setting
    span = total_nimg if setting.over_kimg is None else setting.over_kimg * 1000
    progress = min(nimg / span, 1.0)
    if setting.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return setting.start + (setting.end - setting.start) * progress


def _bounds(setting: float | Schedule | Steps) -> tuple[float, float]:
    if isinstance(setting, Schedule):
        return min(setting.start, setting.end), max(setting.start, setting.end)
    if isinstance(setting, Steps):
        return min(setting.values), max(setting.values)
    return setting, setting


def _shown(setting: float | Schedule | Steps) -> str:
    if isinstance(setting, Schedule):
        return f"{setting.start} to {setting.end}"
    if isinstance(setting, Steps):
        return ", ".join(map(str, setting.values))
    return str(setting)


def _is_whole(setting: int | Steps) -> bool:
    return not isinstance(setting, Steps) or all(value.is_integer() for value in setting.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayerConfig:
    """What both players share: a network and its Adam optimizer (Kingma & Ba, 2015)."""

    network: Network = "dcgan"
    width: int = 32  # dcgan: channels at half the image's resolution; mlp: units a layer
    depth: int | None = None  # mlp: hidden layers, 3 where left out; dcgan: set by the image size
    norm: Norm | None = None  # dcgan: 'none' where left out
    lr: float | Schedule | Steps = 2e-4
    beta1: float = 0.0
    beta2: float = 0.99

    def __post_init__(self) -> None:
        low, high = _bounds(self.lr)
        check(
            (1 <= self.width <= 4096, f"width must be between 1 and 4096, got {self.width}"),
            (
                self.depth is None or self.network == "mlp",
                f"depth is for network = 'mlp' only (a dcgan's follows from the image size), "
                f"got {self.depth} with network = '{self.network}'",
            ),
            (self.depth is None or self.depth >= 1, f"depth must be >= 1, got {self.depth}"),
            (
                self.norm in (None, "none") or self.network == "dcgan",
                f"norm = '{self.norm}' is for network = 'dcgan' only; an mlp plays without",
            ),
            (low > 0 and high < math.inf, f"lr must be > 0 and finite, got {_shown(self.lr)}"),
            (0 <= self.beta1 < 1, f"beta1 must be in [0, 1), got {self.beta1}"),
            (0 <= self.beta2 < 1, f"beta2 must be in [0, 1), got {self.beta2}"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig(PlayerConfig):
    """The counterfeiter G: latent z (and label) to an image.

    norm = "batch" is the classic DCGAN; its statistics are per worker, so it is the one choice
    that ties the trajectory to the number of workers.
    """

    norm: Norm | None = None  # dcgan: 'group' where left out
    latent_dim: int = 64

    def __post_init__(self) -> None:
        own = (self.latent_dim >= 1, f"latent_dim must be >= 1, got {self.latent_dim}")
        _all(lambda: check(own), lambda: PlayerConfig.__post_init__(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig(PlayerConfig):
    """The police D: an image (and label) to one logit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What each player descends, and the gradient penalties that keep D smooth.

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
                _bounds(self.r1_gamma)[0] >= 0 and _bounds(self.r1_gamma)[1] < math.inf,
                f"r1_gamma must be >= 0 and finite, got {_shown(self.r1_gamma)}",
            ),
            (
                _bounds(self.r2_gamma)[0] >= 0 and _bounds(self.r2_gamma)[1] < math.inf,
                f"r2_gamma must be >= 0 and finite, got {_shown(self.r2_gamma)}",
            ),
            (
                self.penalty_interval >= 1,
                f"penalty_interval must be >= 1 (every turn), got {self.penalty_interval}",
            ),
        )

    @property
    def penalized(self) -> bool:
        """Whether any penalty is ever paid."""
        return _bounds(self.r1_gamma)[1] > 0 or _bounds(self.r2_gamma)[1] > 0


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
                _bounds(self.d_steps)[0] >= 1 and _is_whole(self.d_steps),
                f"d_steps must be >= 1 and whole, got {_shown(self.d_steps)}",
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
                _bounds(self.half_life_kimg)[0] >= 0
                and _bounds(self.half_life_kimg)[1] < math.inf,
                f"half_life_kimg must be >= 0 and finite, got {_shown(self.half_life_kimg)}",
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
            )
        )

    @property
    def reals_in_g_turn(self) -> bool:
        """Whether G's turn draws fresh reals: for pairs, or for labels to forge under."""
        return self.objective.name == "relativistic" or self.conditioning.name != "none"


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


def _all(*checks) -> None:
    """Runs every check and raises their mistakes together."""
    mistakes: list[str] = []
    for run in checks:
        try:
            run()
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)

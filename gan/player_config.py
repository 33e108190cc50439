"""The dials of the two players: their networks and their optimizers; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gan.rules import check, check_all
from gan.schedules import Schedule, Steps, bounds, shown

Network = Literal["dcgan", "mlp", "resnet", "r3gan", "stylegan2"]
Norm = Literal["none", "group", "batch", "spectral"]
Optimizer = Literal["adam", "adamw", "rmsprop", "sgd"]


DEPTHS: tuple[Network, ...] = ("mlp", "r3gan", "stylegan2")  # where it is a choice
NORMS: tuple[Network, ...] = ("dcgan", "resnet")  # where group or batch normalization is

OWN_SCALES: tuple[Network, ...] = ("r3gan", "stylegan2")  # which spectral norms would undo


def _listed(networks: tuple[Network, ...]) -> str:
    return " or ".join(f"'{network}'" for network in networks)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlayerConfig:
    """What both players share: a network and its optimizer.

    "adam" (Kingma & Ba 2015), "adamw" (Loshchilov & Hutter 2019), "rmsprop" (Tieleman & Hinton
    2012) or "sgd". beta1 is the weight of the past in Adam's mean, and the momentum of the other
    two; beta2 that in the mean square, which sgd has none of.
    """

    network: Network = "dcgan"
    # dcgan: channels at half the image's resolution; mlp: units a layer; resnet and stylegan2:
    # channels at the image's own resolution; r3gan: channels up to 32 px.
    width: int = 32
    # mlp: hidden layers, 3 where left out; r3gan: blocks a resolution, 2; stylegan2: layers of
    # G's mapping network, 8. Elsewhere it follows from the image size.
    depth: int | None = None
    norm: Norm | None = None  # dcgan and resnet: 'none' where left out
    lr: float | Schedule | Steps = 2e-4  # the optimizer's rate
    beta1: float = 0.0
    beta2: float | Schedule | Steps = 0.99
    optimizer: Optimizer = "adam"
    weight_decay: float = 0.0  # adamw's: weights shrink by lr times this in each turn
    max_grad_norm: float | None = None  # longer gradients, over all parameters, are cut to this

    def __post_init__(self) -> None:
        low, high = bounds(self.lr)
        check(
            (1 <= self.width <= 4096, f"width must be between 1 and 4096, got {self.width}"),
            (
                self.depth is None or self.network in DEPTHS,
                f"depth is for network = {_listed(DEPTHS)} only (elsewhere it follows from the "
                f"image size), got {self.depth} with network = '{self.network}'",
            ),
            (self.depth is None or self.depth >= 1, f"depth must be >= 1, got {self.depth}"),
            (
                self.norm in (None, "none", "spectral") or self.network in NORMS,
                f"norm = '{self.norm}' is for network = {_listed(NORMS)} only; "
                f"'{self.network}' plays without",
            ),
            (
                self.norm != "spectral" or self.network not in OWN_SCALES,
                f"norm must be left out with network = {_listed(OWN_SCALES)} (their weights have "
                f"a scale of their own, and some begin at 0), "
                f"got 'spectral' with network = '{self.network}'",
            ),
            (low > 0 and high < math.inf, f"lr must be > 0 and finite, got {shown(self.lr)}"),
            (0 <= self.beta1 < 1, f"beta1 must be in [0, 1), got {self.beta1}"),
            (
                bounds(self.beta2)[0] >= 0 and bounds(self.beta2)[1] < 1,
                f"beta2 must be in [0, 1), got {shown(self.beta2)}",
            ),
            (
                0 <= self.weight_decay < math.inf,
                f"weight_decay must be >= 0 and finite, got {self.weight_decay}",
            ),
            (
                self.weight_decay == 0 or self.optimizer == "adamw",
                f"weight_decay is for optimizer = 'adamw' only, "
                f"got {self.weight_decay} with optimizer = '{self.optimizer}'",
            ),
            (
                self.max_grad_norm is None or 0 < self.max_grad_norm < math.inf,
                f"max_grad_norm must be > 0 and finite, got {self.max_grad_norm}",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorConfig(PlayerConfig):
    """The counterfeiter G: latent z (and label) to an image.

    norm = "batch" is the classic DCGAN; its statistics are per worker, so it is the one choice
    that ties the trajectory to the number of workers.
    """

    norm: Norm | None = None  # dcgan and resnet: 'group' where left out
    latent_dim: int = 64  # numbers in z
    style_mixing: float = 0.0  # stylegan2: images of two latents' styles, 0.9 in the paper
    # InfoGAN (Chen et al. 2016): what D is to read off images; the first numbers of the latent.
    discrete_codes: int = 0  # one choice among so many
    continuous_codes: int = 0  # so many numbers

    def __post_init__(self) -> None:
        codes = self.discrete_codes + self.continuous_codes
        own = (
            (
                self.discrete_codes >= 0 and self.discrete_codes != 1,
                f"discrete_codes must be 0 or at least 2, got {self.discrete_codes}",
            ),
            (
                self.continuous_codes >= 0,
                f"continuous_codes must be >= 0, got {self.continuous_codes}",
            ),
            (
                codes <= self.latent_dim,
                f"latent_dim must hold discrete_codes and continuous_codes, {codes} numbers, "
                f"got {self.latent_dim}",
            ),
            (
                not codes or self.network != "stylegan2",
                "discrete_codes and continuous_codes must be 0 with network = 'stylegan2' (it "
                f"scales its latents), got {self.discrete_codes} and {self.continuous_codes}",
            ),
            (
                0 <= self.style_mixing <= 1,
                f"style_mixing must be in [0, 1], got {self.style_mixing}",
            ),
            (
                self.style_mixing == 0 or self.network == "stylegan2",
                f"style_mixing is for network = 'stylegan2' only, "
                f"got {self.style_mixing} with network = '{self.network}'",
            ),
            (self.latent_dim >= 1, f"latent_dim must be >= 1, got {self.latent_dim}"),
            (
                self.norm != "spectral",
                "norm must be 'none', 'group' or 'batch' (spectral normalization bounds a D), "
                "got 'spectral'",
            ),
        )
        check_all(lambda: check(*own), lambda: PlayerConfig.__post_init__(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscriminatorConfig(PlayerConfig):
    """The police D: an image (and label) to one logit.

    norm = "spectral" divides each layer's weight by its largest singular value (Miyato et al.
    2018, eq. 8), estimated by one power iteration before each of D's turns.
    """

    def __post_init__(self) -> None:
        own = (
            self.depth is None or self.network != "stylegan2",
            f"depth is that of a mapping network, which network = 'stylegan2' has in G only, "
            f"got {self.depth}",
        )
        check_all(lambda: check(own), lambda: PlayerConfig.__post_init__(self))

    @property
    def sees_batches(self) -> bool:
        """Whether what D says of a sample depends on those beside it."""
        return self.norm == "batch" or self.network == "stylegan2"

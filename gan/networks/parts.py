"""Parts that network families share: initialization, normalization, and how labels enter."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gan.config import Norm

LEAK = 0.2


def he_normal(layer: nn.Module, *, fan_in: float, slope: float = 0.0) -> None:
    """He-normal weights and zero bias (He et al. 2015, eq. 15), for inputs that passed a leaky
    ReLU.

    `fan_in` is given, not read off the weight: in a strided transposed convolution each output
    sees only 1/stride^2 of the kernel.
    """
    assert isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (1 + slope**2) / fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def channels_last(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """The same images laid out channels-last in memory, which their strides say too.

    With one channel every layout is the same in memory, and where the strides say another one a
    convolution answers in that. Elementwise operations on a mixture of layouts, as an activation's
    gradient would be, take up to ten times as long.
    """
    n, channels, height, width = images.shape
    if channels == 1:
        return images.reshape(n, height, width, 1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def normalization(norm: Norm, channels: int) -> nn.Module:
    """The layer that `norm` names; groups are 8 channels wide where 8 divides, one group else."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
    return nn.Identity()


def spectrally_normalized(player: nn.Module) -> nn.Module:
    """The player with every layer's weight divided by its largest singular value (Miyato et al.
    2018, eq. 8), as known from power iterations; `iterate_spectral_norms` takes the next one.
    """
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
    for layer in [module for module in player.modules() if isinstance(module, layers)]:
        # In eval mode a forward does not iterate: how often D looks depends on micro-batches, and
        # so on the number of workers.
        parametrizations.spectral_norm(layer)
        norm = _parametrization_of(layer)
        assert norm is not None
        norm.eval()
    return player


def iterate_spectral_norms(player: nn.Module) -> None:
    """One power iteration in every spectrally normalized layer, if there are any."""
    for layer in player.modules():
        norm = _parametrization_of(layer)
        # torch has no public name for the class.
        if isinstance(norm, parametrizations._SpectralNorm):  # pyright: ignore
            norm.train()
            with torch.no_grad():
                _ = layer.weight
            norm.eval()


def _parametrization_of(layer: nn.Module) -> nn.Module | None:
    """What a layer's weight passes through before it is used."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return layer.get_submodule("parametrizations.weight.0")


class LabelledLatent(nn.Module):
    """Puts a learned embedding of the label beside the latent: (n, z) and (n,) to (n, out_dim)."""

    def __init__(self, latent_dim: int, *, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.out_dim = latent_dim * (2 if num_classes else 1)

    def forward(
        self, z: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n out"]:
        if self.embedding is None:
            return z
        assert labels is not None, "a conditional G was asked for images without labels"
        return torch.cat([z, self.embedding(labels)], dim=1)


class LogitHead(nn.Module):
    """Features (n, f) to one logit each, (n,): linear, plus the projection <embedding(label),
    features>.

    Miyato & Koyama 2018, eq. 4. No bias: relative losses cannot see it, and Adam would turn the
    rounding noise of its zero gradient into full-sized steps.
    """

    def __init__(self, num_features: int, *, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(num_features, 1, bias=False)
        he_normal(self.linear, fan_in=2 * num_features)
        self.embedding = nn.Embedding(num_classes, num_features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=num_features**-0.5)

    def forward(
        self, features: Float[Tensor, "n f"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, " n"]:
        logits = self.linear(features)[:, 0]
        if self.embedding is None:
            return logits
        assert labels is not None, "a conditional D was shown images without labels"
        return logits + (self.embedding(labels) * features).sum(dim=1)


class ClassifierHead(nn.Module):
    """Features (n, f) to a logit of real against fake and one for each class, (n, 1 + classes);
    the label is not looked at (Odena et al. 2017).
    """

    def __init__(self, num_features: int, *, num_classes: int):
        super().__init__()
        self.logit = LogitHead(num_features, num_classes=0)
        self.classes = nn.Linear(num_features, num_classes)
        he_normal(self.classes, fan_in=2 * num_features)

    def forward(
        self, features: Float[Tensor, "n f"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n k"]:
        logits = self.logit(features, None)
        return torch.cat([logits[:, None], self.classes(features)], dim=1)


class BesideLabel(nn.Module):
    """A D that sees a learned picture of the label beside the sample (Mirza & Osindero 2014): one
    more channel of an image, as many more features of a vector.
    """

    def __init__(self, player: nn.Module, shape: tuple[int, ...], *, num_classes: int):
        super().__init__()
        self.player = player
        self.shape = (1, *shape[1:]) if len(shape) == 3 else shape
        self.embedding = nn.Embedding(num_classes, math.prod(self.shape))

    @staticmethod
    def seen_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what `player` sees of samples of `shape`."""
        return (shape[0] + 1, *shape[1:]) if len(shape) == 3 else (2 * shape[0],)

    def forward(
        self, samples: Float[Tensor, "n *shape"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *scores"]:
        assert labels is not None, "a conditional D was shown images without labels"
        beside = self.embedding(labels).view(-1, *self.shape).to(samples.dtype)
        return self.player(torch.cat([samples, beside], dim=1), None)

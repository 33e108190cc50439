"""Parts that network families share: initialization, normalization, and how labels enter."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

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


def normalization(norm: Norm, channels: int) -> nn.Module:
    """The layer that `norm` names; groups are 8 channels wide where 8 divides, one group else."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
    return nn.Identity()


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

"""Plain layered perceptrons, for vectors such as the 2-D mixtures and for images of any small
shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from gan.config import DiscriminatorConfig, GeneratorConfig
from gan.networks.parts import LEAK, LabelledLatent, he_normal
from gan.widths import MLP_DEPTH


class _Layers(nn.Module):
    """`depth` dense layers of `width` units, each followed by a leaky ReLU."""

    def __init__(self, in_dim: int, *, width: int, depth: int | None):
        super().__init__()
        dims = [in_dim] + [width] * (depth or MLP_DEPTH)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        for index, layer in enumerate(self.layers):
            he_normal(layer, fan_in=dims[index], slope=LEAK if index else 1)

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), LEAK)
        return x


class Generator(nn.Module):
    """Latent to sample; images end in tanh, vectors are free."""

    def __init__(self, config: GeneratorConfig, shape: tuple[int, ...], *, num_classes: int):
        super().__init__()
        self.shape = shape
        self.latent = LabelledLatent(config.latent_dim, num_classes=num_classes)
        self.layers = _Layers(self.latent.out_dim, width=config.width, depth=config.depth)
        self.to_sample = nn.Linear(config.width, math.prod(shape))
        he_normal(self.to_sample, fan_in=2 * config.width)

    def forward(
        self, z: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *shape"]:
        x = self.to_sample(self.layers(self.latent(z, labels))).view(-1, *self.shape)
        return x.tanh() if len(self.shape) == 3 else x


class Discriminator(nn.Module):
    """Sample to logit."""

    def __init__(
        self,
        config: DiscriminatorConfig,
        shape: tuple[int, ...],
        *,
        head: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.layers = _Layers(math.prod(shape), width=config.width, depth=config.depth)
        self.head = head(config.width)

    def forward(
        self, samples: Float[Tensor, "n *shape"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *scores"]:
        return self.head(self.layers(samples.flatten(1)), labels)

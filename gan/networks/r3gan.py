"""The R3GAN family (Huang et al. 2024, arXiv 2501.05441, section 4): residual stages without any
normalization, grouped inverted bottlenecks, and no trick beside them.

`width` channels up to 32 px, half as many at each doubling above: 768 are the paper's networks.
`depth` blocks a stage, 2 where left out. G's images are not bounded by a tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from gan.config import DiscriminatorConfig, GeneratorConfig
from gan.networks.parts import LEAK, LabelledLatent, channels_last, he_normal
from gan.networks.resampling import Filter
from gan.widths import (
    R3GAN_DEPTH,
    R3GAN_EXPANSION,
    r3gan_channels,
    r3gan_groups,
    resolutions_up,
)

Maps = Float[Tensor, "n c h w"]


class _Block(nn.Module):
    """x + conv1x1(act(conv3x3(act(conv1x1(x))))), wider in between; activations carry the biases.

    Fix-up style (Zhang et al. 2019): the last convolution begins at zero and the others are
    scaled by num_blocks^(-1/4), so the signal's size does not depend on how deep the network is.
    """

    def __init__(self, channels: int, *, num_blocks: int):
        super().__init__()
        inner = R3GAN_EXPANSION * channels
        groups = r3gan_groups(inner)
        self.widen = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.narrow = nn.Conv2d(inner, channels, 1, bias=False)
        fewer = math.sqrt(num_blocks)  # a variance smaller by it is a scale of num_blocks^(-1/4)
        he_normal(self.widen, fan_in=channels * fewer, slope=LEAK)
        he_normal(self.mix, fan_in=9 * inner // groups * fewer, slope=LEAK)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Maps) -> Maps:
        inner = F.leaky_relu(self.widen(x), LEAK)
        return x + self.narrow(F.leaky_relu(self.mix(inner), LEAK))


def _linear_1x1(in_channels: int, out_channels: int) -> nn.Module:
    """A 1x1 convolution that keeps the variance; nothing where the channels stay as they are."""
    if in_channels == out_channels:
        return nn.Identity()
    layer = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    he_normal(layer, fan_in=in_channels, slope=1.0)
    return layer


def _stages(channels: list[int], *, depth: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The way into each resolution, in order, and the blocks there."""
    num_blocks = depth * len(channels)
    ways = [_linear_1x1(a, b) for a, b in zip([channels[0], *channels], channels, strict=False)]
    stages = [
        nn.Sequential(*(_Block(wide, num_blocks=num_blocks) for _ in range(depth)))
        for wide in channels
    ]
    return nn.ModuleList(ways), nn.ModuleList(stages)


class Generator(nn.Module):
    """Latent to image: a learned 4x4 basis weighted by a linear map of the latent, stages of
    blocks between bilinear doublings, and a 1x1 convolution.
    """

    def __init__(self, config: GeneratorConfig, shape: tuple[int, ...], *, num_classes: int):
        super().__init__()
        out_channels, size, _ = shape
        self.latent = LabelledLatent(config.latent_dim, num_classes=num_classes)
        channels = [r3gan_channels(at, width=config.width) for at in resolutions_up(size)]
        self.basis = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.weights = nn.Linear(self.latent.out_dim, channels[0], bias=False)
        he_normal(self.weights, fan_in=self.latent.out_dim, slope=1.0)
        self.filter = Filter(1, 2, 1)
        self.transitions, self.stages = _stages(channels, depth=config.depth or R3GAN_DEPTH)
        self.to_image = nn.Conv2d(channels[-1], out_channels, 1, bias=False)
        he_normal(self.to_image, fan_in=channels[-1], slope=1.0)

    def forward(
        self, z: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n c s s"]:
        x = channels_last(self.basis * self.weights(self.latent(z, labels))[:, :, None, None])
        for index, (transition, stage) in enumerate(
            zip(self.transitions, self.stages, strict=True)
        ):
            # Fewer channels first: the filter works on each of them alone.
            x = stage(self.filter.doubled(transition(x)) if index else x)
        return self.to_image(x)


class Discriminator(nn.Module):
    """Image to logit: a 1x1 convolution, stages of blocks between bilinear halvings, a 4x4
    convolution of each channel to one value, linear.
    """

    def __init__(
        self,
        config: DiscriminatorConfig,
        shape: tuple[int, ...],
        *,
        head: Callable[[int], nn.Module],
    ):
        super().__init__()
        in_channels, size, _ = shape
        channels = [r3gan_channels(at, width=config.width) for at in resolutions_up(size)[::-1]]
        self.from_image = nn.Conv2d(in_channels, channels[0], 1, bias=False)
        he_normal(self.from_image, fan_in=in_channels, slope=1.0)
        self.filter = Filter(1, 2, 1)
        self.transitions, self.stages = _stages(channels, depth=config.depth or R3GAN_DEPTH)
        last = channels[-1]
        self.basis = nn.Conv2d(last, last, 4, groups=last, bias=False)
        he_normal(self.basis, fan_in=16, slope=1.0)
        self.head = head(last)

    def forward(
        self, images: Float[Tensor, "n c s s"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *scores"]:
        x = self.from_image(images)
        for index, (transition, stage) in enumerate(
            zip(self.transitions, self.stages, strict=True)
        ):
            x = stage(transition(self.filter.halved(x)) if index else x)
        return self.head(self.basis(x).flatten(1), labels)

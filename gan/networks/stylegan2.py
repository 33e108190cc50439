"""The StyleGAN2 family (Karras et al. 2020, CVPR): a mapping network, modulated convolutions,
images summed over resolutions in G, residual blocks in D. Pure PyTorch; nothing is compiled.

`width` channels at the image's own size, doubling downwards to 512 (or to `width`); G's `depth`
is that of the mapping network, 8 where left out, and `latent_dim` is its width. Learning rates
are equalized (Karras et al. 2018, section 4.1), so they are higher than those of other families:
2e-3 is usual. The noise that the paper adds to every layer of G is left out: G is a function of
its latent. G's images are not bounded by a tanh.

D sees the standard deviation of a few samples in one (`GROUP` neighbours of a batch), so the
trajectory does not depend on the number of workers where each one's share of the batch, and
`turns.micro_batch`, are multiples of `GROUP`; elsewhere it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from gan.config import DiscriminatorConfig, GeneratorConfig
from gan.networks.parts import LEAK, LabelledLatent
from gan.networks.resampling import Filter
from gan.widths import (
    STYLEGAN2_DEPTH,
    resolutions_up,
    stylegan2_channels,
    stylegan2_layers,
)

GROUP = 4  # samples whose standard deviation D sees
MAPPING_LR = 0.01  # of the learning rate, in the mapping network
TAPS = (1, 3, 3, 1)
CENTRE_DRAWS = 4096  # latents whose mean style truncation moves towards

Maps = Float[Tensor, "n c h w"]
Resized = Float[Tensor, "n _c _h _w"]
Style = Float[Tensor, "n style"]
Styles = Float[Tensor, "n layers style"]


class _Scaled(nn.Module):
    """A parameter as its layer uses it: times a constant."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain = gain

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter * self.gain


def _equalized(player: nn.Module, *, lr: float = 1.0) -> None:
    """Weights that are stored with a standard deviation of 1 and scaled where they are used, so
    that Adam, which knows no scales, moves all layers at one relative speed, `lr` times the rate.
    """
    layers = (nn.Linear, nn.Conv2d, nn.Embedding)
    for layer in [module for module in player.modules() if isinstance(module, layers)]:
        if parametrize.is_parametrized(layer):
            continue
        nn.init.normal_(layer.weight, std=1 / lr)
        gain = lr / math.sqrt(layer.weight[0].numel())
        parametrize.register_parametrization(layer, "weight", _Scaled(gain))
        bias = getattr(layer, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
            if lr != 1:
                parametrize.register_parametrization(layer, "bias", _Scaled(lr))


def _activated(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the mean square of standard normal values, nearly."""
    return F.leaky_relu(x, LEAK) * math.sqrt(2)


class _Modulated(nn.Module):
    """A convolution whose weights are scaled by a style for each sample (section 2.2, eq. 1), and
    brought back to unit norm for each output (eq. 3) where `demodulate`.

    Both scales act on the features instead of the weights: one convolution for the whole batch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        style_dim: int,
        demodulate: bool = True,
        doubling: Filter | None = None,
    ):
        super().__init__()
        self.style = nn.Linear(style_dim, in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.demodulate, self.doubling = demodulate, doubling

    def forward(self, x: Maps, style: Style) -> Resized:
        scale = 1 + self.style(style)
        weight = self.conv.weight
        bias = self.conv.bias
        assert bias is not None
        x = x * scale[:, :, None, None]
        if self.doubling is None:
            x = F.conv2d(x, weight, padding=self.conv.padding)
        else:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = self.doubling.smoothed(x, padding=1, gain=4)
        if self.demodulate:
            square = scale.square() @ weight.square().sum(dim=(2, 3)).T
            x = x * (square + 1e-8).rsqrt()[:, :, None, None]
        return x + bias[:, None, None]


class _Mapping(nn.Module):
    """Latent and label to a style: both of mean square 1, then layers that learn slowly."""

    def __init__(self, config: GeneratorConfig, *, num_classes: int):
        super().__init__()
        self.latent = LabelledLatent(config.latent_dim, num_classes=num_classes)
        dims = [self.latent.out_dim] + [config.latent_dim] * (config.depth or STYLEGAN2_DEPTH)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))
        _equalized(self.layers, lr=MAPPING_LR)

    def forward(self, z: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None) -> Style:
        both = self.latent(z, labels).unflatten(1, (-1, z.shape[1]))  # the latent and the label
        x = (both * (both.square().mean(dim=2, keepdim=True) + 1e-8).rsqrt()).flatten(1)
        for layer in self.layers:
            x = _activated(layer(x))
        return x


class Generator(nn.Module):
    """Latent to style to image: two modulated convolutions a resolution from a learned constant,
    and what each resolution adds to the image.
    """

    path_mean: Float[Tensor, ""]

    def __init__(self, config: GeneratorConfig, shape: tuple[int, ...], *, num_classes: int):
        super().__init__()
        out_channels, size, _ = shape
        self.latent_dim = config.latent_dim
        self.mapping = _Mapping(config, num_classes=num_classes)
        self.filter = Filter(*TAPS)
        resolutions = resolutions_up(size)
        channels = stylegan2_channels(4, size=size, width=config.width)
        self.constant = nn.Parameter(torch.randn(channels, 4, 4))
        self.convs, self.to_images = nn.ModuleList(), nn.ModuleList()
        style = config.latent_dim
        for resolution in resolutions:
            wider = stylegan2_channels(resolution, size=size, width=config.width)
            if resolution > 4:
                self.convs.append(
                    _Modulated(channels, wider, 3, doubling=self.filter, style_dim=style)
                )
            self.convs.append(_Modulated(wider, wider, 3, style_dim=style))
            self.to_images.append(
                _Modulated(wider, out_channels, 1, demodulate=False, style_dim=style)
            )
            channels = wider
        self.num_layers = len(self.convs) + 1  # the last image takes one of its own
        assert self.num_layers == stylegan2_layers(size)
        self.register_buffer("path_mean", torch.zeros(()))  # gan.penalties.path_lengths, averaged
        _equalized(self)

    def forward(
        self,
        z: Float[Tensor, "n z"],
        labels: Int64[Tensor, " n"] | None,
        other_z: Float[Tensor, "n z"] | None = None,
        crossover: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c s s"]:
        """With `other_z` the style changes to that one's at layer `crossover` of each sample."""
        return self.images(self.styles(z, labels, other_z, crossover))

    def styles(
        self,
        z: Float[Tensor, "n z"],
        labels: Int64[Tensor, " n"] | None,
        other_z: Float[Tensor, "n z"] | None = None,
        crossover: Float[Tensor, " n"] | None = None,
    ) -> Styles:
        """One style for each layer."""
        styles = self.mapping(z, labels)[:, None].expand(-1, self.num_layers, -1)
        if other_z is None:
            return styles
        assert crossover is not None
        other = self.mapping(other_z, labels)[:, None]
        layer = torch.arange(self.num_layers, device=z.device)
        later: Bool[Tensor, "n layers"] = layer >= crossover[:, None]
        return torch.where(later[:, :, None], other, styles)

    def images(self, styles: Styles) -> Float[Tensor, "n c s s"]:
        """Images from one style for each layer."""
        x = self.constant.expand(styles.shape[0], -1, -1, -1)  # len() would fix it in an export
        image, layer = None, 0
        for index, to_image in enumerate(self.to_images):
            for _ in range(2 if index else 1):
                x = _activated(self.convs[layer](x, styles[:, layer]))
                layer += 1
            own = to_image(x, styles[:, layer])
            image = own if image is None else self.filter.doubled(image) + own
        assert image is not None
        return image

    @torch.no_grad()
    def centre(self, label: int | None) -> Float[Tensor, " style"]:
        """The mean style over fixed latents, of one class where there are classes."""
        rng = torch.Generator().manual_seed(0)
        z = torch.randn(CENTRE_DRAWS, self.latent_dim, generator=rng).to(self.constant)
        labels = None if label is None else torch.full((CENTRE_DRAWS,), label, device=z.device)
        return self.mapping(z, labels).mean(dim=0)

    def truncated(
        self,
        z: Float[Tensor, "n z"],
        labels: Int64[Tensor, " n"] | None,
        psi: Float[Tensor, " n"],
        centres: Style,
    ) -> Float[Tensor, "n c s s"]:
        """Images whose styles are only `psi` times as far from their centres: 1 is the style
        itself, 0 the same image for all of a class (Karras et al. 2019, appendix B).
        """
        styles = centres + psi[:, None] * (self.mapping(z, labels) - centres)
        return self.images(styles[:, None].expand(-1, self.num_layers, -1))


class _Down(nn.Module):
    """Half the resolution: two 3x3 convolutions beside a 1x1 one, their sum over sqrt 2."""

    def __init__(self, in_channels: int, out_channels: int, filter: Filter):
        super().__init__()
        self.filter = filter
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, stride=2)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Maps) -> Resized:
        inner = _activated(self.conv1(x))
        inner = _activated(self.conv2(self.filter.smoothed(inner, padding=2)))
        return (inner + self.shortcut(self.filter.halved(x))) / math.sqrt(2)


class Discriminator(nn.Module):
    """Image to logit: residual blocks down to 4x4, the deviation within small groups of samples
    beside the features, a convolution and a dense layer, linear.
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
        self.filter = Filter(*TAPS)
        channels = stylegan2_channels(size, size=size, width=config.width)
        self.from_image = nn.Conv2d(in_channels, channels, 1)
        self.blocks = nn.ModuleList()
        for resolution in reversed(resolutions_up(size)[:-1]):
            wider = stylegan2_channels(resolution, size=size, width=config.width)
            self.blocks.append(_Down(channels, wider, self.filter))
            channels = wider
        self.last_conv = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.dense = nn.Linear(channels * 16, channels)
        self.head = head(channels)
        _equalized(self)

    def forward(
        self, images: Float[Tensor, "n c s s"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *scores"]:
        x = _activated(self.from_image(images))
        for block in self.blocks:
            x = block(x)
        x = self.last_conv(torch.cat([x, _deviations(x)], dim=1))
        # Flattened first: the dense layer's gradient comes in that layout.
        return self.head(_activated(self.dense(_activated(x.flatten(1)))), labels)


def _deviations(x: Maps) -> Float[Tensor, "n 1 h w"]:
    """The mean standard deviation of all features among `GROUP` neighbours of the batch (Karras
    et al. 2018, section 3), as one more map; a last group may be smaller.
    """
    groups = []
    for group in x.split(GROUP):
        deviation = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        groups.append(deviation.expand(len(group), 1, *x.shape[2:]))
    return torch.cat(groups)

"""The residual family of SNGAN (Miyato et al. 2018, appendix B.3): pre-activated blocks between
4x4 and the image's size.

Up to 32 px all features are `width` channels wide and D stops at 8x8, as in the paper's CIFAR-10
networks (256 in G, 128 in D); larger images take `width` channels at their own size, doubling
downwards to 16 x `width`, as in its ImageNet ones (64).
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from gan.config import DiscriminatorConfig, GeneratorConfig, Norm
from gan.networks.parts import LabelledLatent, channels_last, he_normal, normalization
from gan.widths import resnet_channels, resnet_d_blocks, resolutions_up

Maps = Float[Tensor, "n c h w"]
Resized = Float[Tensor, "n _c _h _w"]


class _Block(nn.Module):
    """x plus two 3x3 convolutions of it, each after ReLU; where channels or resolution change, a
    1x1 convolution takes the place of x.

    The second convolution begins scaled down, whatever `norm` is, so that all `num_blocks`
    together double the variance rather than each; the paper leaves that to its norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Norm,
        num_blocks: int,
        resampled: Callable[[Tensor], Tensor] | None = None,
        up: bool = False,
        first: bool = False,
    ):
        super().__init__()
        middle = out_channels if up or first else in_channels
        self.resampled, self.up, self.first = resampled, up, first
        # A sample's own colours are not cut off by a ReLU, nor is there anything to normalize.
        self.norm1 = nn.Identity() if first else normalization(norm, in_channels)
        self.norm2 = normalization(norm, middle)
        self.conv1 = nn.Conv2d(in_channels, middle, 3, padding=1)
        he_normal(self.conv1, fan_in=9 * in_channels, slope=1.0 if first else 0.0)
        self.conv2 = nn.Conv2d(middle, out_channels, 3, padding=1)
        he_normal(self.conv2, fan_in=9 * middle * num_blocks)
        self.shortcut = None
        if in_channels != out_channels or resampled is not None:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
            he_normal(self.shortcut, fan_in=in_channels, slope=1.0)

    def forward(self, x: Maps) -> Resized:
        resampled = self.resampled or _same
        h = x if self.first else F.relu(self.norm1(x))
        h = self.conv1(resampled(h) if self.up else h)
        h = self.conv2(F.relu(self.norm2(h)))
        if not self.up:
            h = resampled(h)
        if self.shortcut is None:
            return x + h
        # A 1x1 convolution and a mean of neighbours, or a repetition, may change places.
        small = resampled(x) if not self.up else x
        kept = self.shortcut(small)
        return h + (resampled(kept) if self.up else kept)


def _same(x: Maps) -> Maps:
    return x


def _doubled(x: Maps) -> Float[Tensor, "n c 2*h 2*w"]:
    """Every value four times: the paper's upsampling, as a view that is copied once."""
    n, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


def _halved(x: Maps) -> Float[Tensor, "n c h//2 w//2"]:
    return F.avg_pool2d(x, 2)


class Generator(nn.Module):
    """Latent to image: a linear map to 4x4, a block per doubling, then normalization, ReLU, a 3x3
    convolution and tanh.
    """

    def __init__(self, config: GeneratorConfig, shape: tuple[int, ...], *, num_classes: int):
        super().__init__()
        out_channels, size, _ = shape
        norm = config.norm or "group"
        self.latent = LabelledLatent(config.latent_dim, num_classes=num_classes)
        resolutions = resolutions_up(size)[1:]
        self.channels = channels = resnet_channels(4, size=size, width=config.width)
        self.to_4x4 = nn.Linear(self.latent.out_dim, channels * 16)
        he_normal(self.to_4x4, fan_in=2 * self.latent.out_dim)
        self.blocks = nn.ModuleList()
        for resolution in resolutions:
            wider = resnet_channels(resolution, size=size, width=config.width)
            how = {"norm": norm, "num_blocks": len(resolutions), "resampled": _doubled}
            self.blocks.append(_Block(channels, wider, up=True, **how))
            channels = wider
        self.last_norm = normalization(norm, channels)
        self.to_image = nn.Conv2d(channels, out_channels, 3, padding=1)
        he_normal(self.to_image, fan_in=2 * 9 * channels)

    def forward(
        self, z: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n c s s"]:
        x = channels_last(self.to_4x4(self.latent(z, labels)).view(-1, self.channels, 4, 4))
        for block in self.blocks:
            x = block(x)
        return self.to_image(F.relu(self.last_norm(x))).tanh()


class Discriminator(nn.Module):
    """Image to logit: a block per halving, one or two more, ReLU, a sum over positions, linear.

    Where its weights are not spectrally normalized the sum is a mean: nothing else would keep the
    logits in proportion.
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
        spectral = config.norm == "spectral"
        norm = "none" if spectral or config.norm is None else config.norm
        blocks = resnet_d_blocks(size)
        self.sums = spectral
        self.blocks = nn.ModuleList()
        channels = in_channels
        for at, halved in blocks:
            wider = resnet_channels(at, size=size, width=config.width)
            how = {"norm": norm, "num_blocks": len(blocks), "first": not self.blocks}
            down = _halved if halved else None
            self.blocks.append(_Block(channels, wider, resampled=down, **how))
            channels = wider
        self.head = head(channels)

    def forward(
        self, images: Float[Tensor, "n c s s"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *scores"]:
        x = images
        for block in self.blocks:
            x = block(x)
        x = F.relu(x).sum(dim=(2, 3)) if self.sums else F.relu(x).mean(dim=(2, 3))
        return self.head(x, labels)

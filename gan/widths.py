"""How wide and how deep the layers of each network family are; imports no torch."""

from __future__ import annotations

MLP_DEPTH = 3  # hidden layers, where the config leaves it out
DCGAN_WIDENING = 8  # channels stop doubling there, as in the paper's 64 px networks
RESNET_SMALL_PX, RESNET_WIDENING = 32, 16
R3GAN_DEPTH, R3GAN_EXPANSION, R3GAN_GROUP, R3GAN_WIDE_PX = 2, 2, 16, 32
STYLEGAN2_DEPTH, STYLEGAN2_MOST = 8, 512


def dcgan_channels(resolution: int, *, size: int, width: int) -> int:
    """`width` at half the image's size, doubling downwards."""
    return width * min(size // (2 * resolution), DCGAN_WIDENING)


def resnet_channels(resolution: int, *, size: int, width: int) -> int:
    """`width` everywhere in small images, else at the image's size, doubling downwards."""
    return width if size <= RESNET_SMALL_PX else width * min(size // resolution, RESNET_WIDENING)


def r3gan_channels(resolution: int, *, width: int) -> int:
    """`width` up to 32 px, half as many at each doubling above."""
    return max(width * R3GAN_WIDE_PX // max(resolution, R3GAN_WIDE_PX), 1)


def r3gan_groups(channels: int) -> int:
    """Groups of a 3x3 convolution: 16 channels wide where 16 divides, one group else."""
    return channels // R3GAN_GROUP if channels % R3GAN_GROUP == 0 else 1


def stylegan2_channels(resolution: int, *, size: int, width: int) -> int:
    """`width` at the image's size, doubling downwards to 512, or to `width`."""
    return min(width * size // resolution, max(width, STYLEGAN2_MOST))


def stylegan2_layers(size: int) -> int:
    """Styles that an image of `size` px takes: two a resolution."""
    return 2 * (size.bit_length() - 2)


def resolutions_up(size: int) -> list[int]:
    """4, 8, ... up to `size`."""
    return [4 * 2**k for k in range((size // 4).bit_length())]


def resnet_d_blocks(size: int) -> list[tuple[int, bool]]:
    """D's blocks: at which resolution each works, and whether it halves it."""
    last, more = (8, 2) if size <= RESNET_SMALL_PX else (4, 1)
    halving = [(size >> k, True) for k in range((size // last).bit_length() - 1)]
    return halving + [(min(last, size), False)] * more

"""What a network holds and what an image costs it, counted; imports no torch, so that a dry run
can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from gan.config import GameConfig, Sample
from gan.player_config import DiscriminatorConfig, GeneratorConfig, Norm, PlayerConfig
from gan.widths import (
    MLP_DEPTH,
    R3GAN_DEPTH,
    R3GAN_EXPANSION,
    STYLEGAN2_DEPTH,
    dcgan_channels,
    r3gan_channels,
    r3gan_groups,
    resnet_channels,
    resnet_d_blocks,
    resolutions_up,
    stylegan2_channels,
)


@dataclass(frozen=True, slots=True)
class Size:
    """What a network holds, and what one image costs it."""

    parameters: int
    flops: int  # of a forward pass: two for each product of a convolution or a matrix


@dataclass(frozen=True, slots=True)
class _Layer:
    parameters: int
    products: int = 0  # multiplications of weights with features, for one image


Layers = Iterator[_Layer]


def sizes(config: GameConfig, sample: Sample) -> tuple[Size, Size]:
    """Of G and of D. The pair must have passed `gan.config.check_sample`."""
    conditioning = config.conditioning.name
    classes = sample.num_classes if conditioning != "none" else 0
    G_layers = _GENERATORS[config.generator.network](config.generator, sample.shape, classes)
    codes = config.generator.discrete_codes + config.generator.continuous_codes
    shape, beside = sample.shape, []
    if conditioning == "concatenation":
        one = (1, *shape[1:]) if len(shape) == 3 else shape
        beside = [_Layer(classes * math.prod(one))]
        shape = (shape[0] + 1, *shape[1:]) if len(shape) == 3 else (2 * shape[0],)

    def head(features: int) -> Layers:
        yield _dense(features, 1, bias=False)
        if conditioning == "projection":
            yield _Layer(classes * features)
        if conditioning == "auxiliary":
            yield _dense(features, classes)
        if codes:
            yield _dense(features, codes)

    D_layers = _DISCRIMINATORS[config.discriminator.network](config.discriminator, shape, head)
    return _size(G_layers), _size(iter([*beside, *D_layers]))


def _size(layers: Layers) -> Size:
    found = list(layers)
    return Size(sum(x.parameters for x in found), 2 * sum(x.products for x in found))


def _dense(into: int, out: int, *, bias: bool = True) -> _Layer:
    return _Layer(into * out + bias * out, into * out)


def _conv(
    into: int, out: int, kernel: int, *, at: int, bias: bool = True, groups: int = 1
) -> _Layer:
    """A convolution whose products are taken at `at` x `at` places: those of its output, or of
    the input where it is transposed.
    """
    weights = into * out // groups * kernel**2
    return _Layer(weights + bias * out, weights * at**2)


def _filter(channels: int, taps: int, *, at: int) -> _Layer:
    return _Layer(0, channels * taps**2 * at**2)


def _norm(norm: Norm, channels: int) -> _Layer:
    return _Layer(2 * channels if norm in ("group", "batch") else 0)


def _embedded(config: GeneratorConfig, classes: int) -> tuple[_Layer, int]:
    """G's embedding of labels, and how long a latent is with it."""
    return _Layer(classes * config.latent_dim), config.latent_dim * (2 if classes else 1)


Head = Callable[[int], Layers]


def _mlp_layers(config: PlayerConfig, into: int) -> Layers:
    for a, b in pairwise([into] + [config.width] * (config.depth or MLP_DEPTH)):
        yield _dense(a, b)


def _mlp_g(config: GeneratorConfig, shape: tuple[int, ...], classes: int) -> Layers:
    embedding, into = _embedded(config, classes)
    yield embedding
    yield from _mlp_layers(config, into)
    yield _dense(config.width, math.prod(shape))


def _mlp_d(config: DiscriminatorConfig, shape: tuple[int, ...], head: Head) -> Layers:
    yield from _mlp_layers(config, math.prod(shape))
    yield from head(config.width)


def _dcgan_g(config: GeneratorConfig, shape: tuple[int, ...], classes: int) -> Layers:
    size, norm = shape[1], config.norm or "group"
    embedding, into = _embedded(config, classes)
    channels = dcgan_channels(4, size=size, width=config.width)
    yield embedding
    yield _dense(into, channels * 16, bias=norm == "none")
    yield _norm(norm, channels)
    for resolution in resolutions_up(size)[1:-1]:
        wider = dcgan_channels(resolution, size=size, width=config.width)
        yield _conv(channels, wider, 4, at=resolution // 2, bias=norm == "none")
        yield _norm(norm, wider)
        channels = wider
    yield _conv(channels, shape[0], 4, at=size // 2)


def _dcgan_d(config: DiscriminatorConfig, shape: tuple[int, ...], head: Head) -> Layers:
    channels, size = shape[0], shape[1]
    for number, resolution in enumerate(reversed(resolutions_up(size)[:-1])):
        wider = dcgan_channels(resolution, size=size, width=config.width)
        norm = config.norm if number and config.norm not in (None, "spectral") else "none"
        yield _conv(channels, wider, 4, at=resolution, bias=norm == "none")
        yield _norm(norm, wider)
        channels = wider
    yield from head(channels * 16)


def _resnet_g(config: GeneratorConfig, shape: tuple[int, ...], classes: int) -> Layers:
    size, norm = shape[1], config.norm or "group"
    embedding, into = _embedded(config, classes)
    channels = resnet_channels(4, size=size, width=config.width)
    yield embedding
    yield _dense(into, channels * 16)
    for resolution in resolutions_up(size)[1:]:
        wider = resnet_channels(resolution, size=size, width=config.width)
        yield _norm(norm, channels)
        yield _conv(channels, wider, 3, at=resolution)
        yield _norm(norm, wider)
        yield _conv(wider, wider, 3, at=resolution)
        yield _conv(channels, wider, 1, at=resolution // 2)
        channels = wider
    yield _norm(norm, channels)
    yield _conv(channels, shape[0], 3, at=size)


def _resnet_d(config: DiscriminatorConfig, shape: tuple[int, ...], head: Head) -> Layers:
    channels, size = shape[0], shape[1]
    norm = "none" if config.norm in (None, "spectral") else config.norm
    for number, (at, halved) in enumerate(resnet_d_blocks(size)):
        wider = resnet_channels(at, size=size, width=config.width)
        middle = wider if number == 0 else channels
        yield _norm(norm if number else "none", channels)
        yield _conv(channels, middle, 3, at=at)
        yield _norm(norm, middle)
        yield _conv(middle, wider, 3, at=at)
        if halved or channels != wider:
            yield _conv(channels, wider, 1, at=at // 2 if halved else at)
        channels = wider
    yield from head(channels)


def _r3gan_stage(channels: int, *, depth: int, at: int) -> Layers:
    inner = R3GAN_EXPANSION * channels
    for _ in range(depth):
        yield _conv(channels, inner, 1, at=at)
        yield _conv(inner, inner, 3, at=at, groups=r3gan_groups(inner))
        yield _conv(inner, channels, 1, at=at, bias=False)


def _r3gan_g(config: GeneratorConfig, shape: tuple[int, ...], classes: int) -> Layers:
    size, depth = shape[1], config.depth or R3GAN_DEPTH
    embedding, into = _embedded(config, classes)
    channels = r3gan_channels(4, width=config.width)
    yield embedding
    yield _Layer(channels * 16)
    yield _dense(into, channels, bias=False)
    for resolution in resolutions_up(size):
        wider = r3gan_channels(resolution, width=config.width)
        if wider != channels:
            yield _conv(channels, wider, 1, at=resolution // 2, bias=False)
        if resolution > 4:
            yield _filter(wider, 3, at=resolution // 2)
        yield from _r3gan_stage(wider, depth=depth, at=resolution)
        channels = wider
    yield _conv(channels, shape[0], 1, at=size, bias=False)


def _r3gan_d(config: DiscriminatorConfig, shape: tuple[int, ...], head: Head) -> Layers:
    size, depth = shape[1], config.depth or R3GAN_DEPTH
    channels = r3gan_channels(size, width=config.width)
    yield _conv(shape[0], channels, 1, at=size, bias=False)
    for resolution in reversed(resolutions_up(size)):
        wider = r3gan_channels(resolution, width=config.width)
        if resolution < size:
            yield _filter(channels, 3, at=resolution)
        if wider != channels:
            yield _conv(channels, wider, 1, at=resolution, bias=False)
        yield from _r3gan_stage(wider, depth=depth, at=resolution)
        channels = wider
    yield _conv(channels, channels, 4, at=1, bias=False, groups=channels)
    yield from head(channels)


def _modulated(
    into: int, out: int, kernel: int, *, style: int, at: int, demodulated: bool = True
) -> Layers:
    yield _dense(style, into)
    yield _conv(into, out, kernel, at=at)
    if demodulated:
        yield _Layer(0, into * out)


def _stylegan2_g(config: GeneratorConfig, shape: tuple[int, ...], classes: int) -> Layers:
    size, style = shape[1], config.latent_dim
    embedding, into = _embedded(config, classes)
    yield embedding
    for a, b in pairwise([into] + [style] * (config.depth or STYLEGAN2_DEPTH)):
        yield _dense(a, b)
    channels = stylegan2_channels(4, size=size, width=config.width)
    yield _Layer(channels * 16)
    for resolution in resolutions_up(size):
        wider = stylegan2_channels(resolution, size=size, width=config.width)
        if resolution > 4:
            yield from _modulated(channels, wider, 3, style=style, at=resolution // 2)
            yield _filter(wider, 4, at=resolution)
            yield _filter(shape[0], 4, at=resolution // 2)  # of the image so far
        yield from _modulated(wider, wider, 3, style=style, at=resolution)
        how = {"style": style, "at": resolution}
        yield from _modulated(wider, shape[0], 1, demodulated=False, **how)
        channels = wider


def _stylegan2_d(config: DiscriminatorConfig, shape: tuple[int, ...], head: Head) -> Layers:
    size = shape[1]
    channels = stylegan2_channels(size, size=size, width=config.width)
    yield _conv(shape[0], channels, 1, at=size)
    for resolution in reversed(resolutions_up(size)[:-1]):
        wider = stylegan2_channels(resolution, size=size, width=config.width)
        yield _conv(channels, channels, 3, at=2 * resolution)
        yield _filter(channels, 4, at=2 * resolution + 1)
        yield _conv(channels, wider, 3, at=resolution)
        yield _filter(channels, 4, at=resolution)
        yield _conv(channels, wider, 1, at=resolution, bias=False)
        channels = wider
    yield _conv(channels + 1, channels, 3, at=4)
    yield _dense(channels * 16, channels)
    yield from head(channels)


_GENERATORS: dict[str, Callable[[GeneratorConfig, tuple[int, ...], int], Layers]] = {
    "mlp": _mlp_g,
    "dcgan": _dcgan_g,
    "resnet": _resnet_g,
    "r3gan": _r3gan_g,
    "stylegan2": _stylegan2_g,
}
_DISCRIMINATORS: dict[str, Callable[[DiscriminatorConfig, tuple[int, ...], Head], Layers]] = {
    "mlp": _mlp_d,
    "dcgan": _dcgan_d,
    "resnet": _resnet_d,
    "r3gan": _r3gan_d,
    "stylegan2": _stylegan2_d,
}

"""Builds the players from their configs; one file a family, and FAMILIES lists them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import nn

from gan.codes import CodedGenerator, Codes, CodesHead
from gan.config import Conditioning, DiscriminatorConfig, GeneratorConfig, Sample
from gan.networks import dcgan, mlp, r3gan, resnet, stylegan2
from gan.networks.parts import (
    BesideLabel,
    ClassifierHead,
    LogitHead,
    iterate_spectral_norms,
    spectrally_normalized,
)
from gan.seeds import derive_seed

__all__ = ["FAMILIES", "build_discriminator", "build_generator", "iterate_spectral_norms"]

NO_CODES = Codes()
Head = Callable[[int], nn.Module]  # num_features to what maps (n, num_features), labels to logits


class Family(Protocol):
    """What a network family offers, two classes; `shape` is (channels, height, width) or
    (features,), and `num_classes` 0 means unconditional.

    How labels enter D is not a family's business: it ends in the `head` of its number of features.
    """

    def Generator(
        self, config: GeneratorConfig, shape: tuple[int, ...], *, num_classes: int
    ) -> nn.Module: ...

    def Discriminator(
        self, config: DiscriminatorConfig, shape: tuple[int, ...], *, head: Head
    ) -> nn.Module: ...


FAMILIES: dict[str, Family] = {
    "dcgan": dcgan,
    "mlp": mlp,
    "resnet": resnet,
    "r3gan": r3gan,
    "stylegan2": stylegan2,
}


def build_generator(
    config: GeneratorConfig, *, conditioning: Conditioning, sample: Sample, seed: int
) -> nn.Module:
    """G: latents (n, latent_dim) and labels (n,) or None to samples. The images of dcgan, mlp and
    resnet lie in [-1, 1], those of the others about there.

    Weights follow from `seed` alone, on the CPU in float32; convolutions run channels-last, the
    faster layout on GPUs and CPUs alike.
    """
    classes = sample.num_classes if conditioning != "none" else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init/generator", 0))
        player = FAMILIES[config.network].Generator(config, sample.shape, num_classes=classes)
    if codes := Codes.of(config):
        player = CodedGenerator(player, codes)
    return _channels_last(player)


def build_discriminator(
    config: DiscriminatorConfig,
    *,
    conditioning: Conditioning,
    sample: Sample,
    seed: int,
    codes: Codes = NO_CODES,
) -> nn.Module:
    """D: samples and labels (n,) or None to one logit each, (n,); with an auxiliary classifier to
    (n, 1 + classes), where it reads codes to (n, 1 + codes), the logit first. Weights follow from
    `seed` alone.
    """
    classes = sample.num_classes if conditioning != "none" else 0
    head = partial(LogitHead, num_classes=classes if conditioning == "projection" else 0)
    if conditioning == "auxiliary":
        head = partial(ClassifierHead, num_classes=classes)
    if codes:
        head = partial(_reading, head, codes)
    beside = conditioning == "concatenation"
    shape = BesideLabel.seen_shape(sample.shape) if beside else sample.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init/discriminator", 0))
        player = FAMILIES[config.network].Discriminator(config, shape, head=head)
        if config.norm == "spectral":
            player = spectrally_normalized(player)
        if beside:  # its pictures of labels are input, and as large as images are
            player = BesideLabel(player, sample.shape, num_classes=classes)
    return _channels_last(player)


def _reading(head: Head, codes: Codes, num_features: int) -> nn.Module:
    return CodesHead(head(num_features), num_features, codes)


def _channels_last(player: nn.Module) -> nn.Module:
    """Lays convolution weights out channels-last, all but those where one channel makes the
    layouts one.

    There the strides would differ from those that autograd gives the gradient, and DDP would copy
    it.
    """
    for parameter in player.parameters():
        if parameter.ndim == 4 and parameter.shape[1] > 1:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return player

"""Differentiable augmentation of whatever D sees (Zhao et al. 2020), as a function of given draws.

Reals and fakes are augmented alike, so G learns the images before that, as long as what was done
to them can be told (`AugmentConfig`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gan import warps
from gan.config import Policy
from gan.warps import Draws, Images

HOLE = 1 / 2  # side of what is cut out, of an image's size


def augment(images: Images, draws: Draws, *, policies: Sequence[Policy]) -> Images:
    """The images after each of `policies`, as `draws` of `resolved` says."""
    for name in policies:
        first, change = POLICIES[name]
        applied, own = draws[:, first] > 0, draws[:, first + 1 : first + 4]
        images = torch.where(applied[:, None, None, None], change(images, own), images)
    return images


def resolved(uniforms: Draws, probability: float) -> Draws:
    """Draws from uniform numbers in [0, 1): whether each policy is applied, and how it is."""
    draws = uniforms.clone()
    draws[:, ::4] = (uniforms[:, ::4] < probability).to(uniforms.dtype)
    return draws


def _color(images: Images, draws: Draws) -> Images:
    """Brightness by +-1/2, saturation by 0 to 2, contrast by 1/2 to 3/2."""
    brightness, saturation, contrast = draws.T[:, :, None, None, None]
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (2 * saturation)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + 0.5)


def _luma(images: Images, draws: Draws) -> Images:
    """Light for dark, every second time; colours stay (Karras et al. 2020, appendix B)."""
    grey = images.mean(dim=1, keepdim=True)
    return torch.where(draws[:, :1, None, None] < 0.5, images - 2 * grey, images)


def _hue(images: Images, draws: Draws) -> Images:
    """Colours turned about the grey axis by any angle (Rodrigues' formula); greys stay."""
    angle = (2 * torch.pi * (draws[:, :1, None, None] - 0.5)).to(images.dtype)
    grey = images.mean(dim=1, keepdim=True)
    across = (images.roll(1, 1) - images.roll(-1, 1)) / 3**0.5  # (1, 1, 1) / sqrt(3) x colour
    return grey + (images - grey) * angle.cos() + across * angle.sin()


def _cutout(images: Images, draws: Draws) -> Images:
    """A grey square about any place of the image, cut off at its border."""
    rows, columns = (_in_hole(draws[:, axis], size) for axis, size in enumerate(images.shape[2:]))
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _in_hole(draws: Float[Tensor, " n"], size: int) -> Bool[Tensor, "n s"]:
    side = round(HOLE * size)
    first = (draws * (size + 1 - side % 2)).floor() - side // 2
    place = torch.arange(size, device=draws.device)
    return (place >= first[:, None]) & (place < first[:, None] + side)


POLICIES: dict[Policy, tuple[int, Callable[[Images, Draws], Images]]] = {
    "color": (0, _color),
    "translation": (4, warps.translation),
    "cutout": (8, _cutout),
    "flip": (12, warps.flip),
    "quarters": (16, warps.quarters),
    "scale": (20, warps.scale),
    "rotation": (24, warps.rotation),
    "stretch": (28, warps.stretch),
    "luma": (32, _luma),
    "hue": (36, _hue),
}
NUM_DRAWS = 4 * len(POLICIES)  # of each: whether it is applied, and three numbers
NUM_FIRST = 12  # of the policies that were here first: games drew these alone

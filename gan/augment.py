"""Differentiable augmentation of whatever D sees (Zhao et al. 2020), as a function of given draws.

D never sees an image that is not augmented, real or fake, so G learns the images before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gan.config import Policy

Images = Float[Tensor, "n c h w"]
Draws = Float[Tensor, "n d"]  # each row an image's own

SHIFT = 1 / 8  # of an image's size, at most
HOLE = 1 / 2  # side of what is cut out, of an image's size
OCTAVES = 1 / 2  # by which "scale" enlarges or shrinks, at most


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


def _translation(images: Images, draws: Draws) -> Images:
    """A shift by whole pixels along each axis; what comes in from outside is 0.

    By products with shifted identities, which are exact, and the same every time on a GPU too.
    """
    rows, columns = (
        _shifted_identity(draws[:, axis], size).to(images.dtype)[:, None]
        for axis, size in enumerate(images.shape[2:])
    )
    return rows @ images @ columns.transpose(2, 3)


def _shifted_identity(draws: Float[Tensor, " n"], size: int) -> Bool[Tensor, "n s s"]:
    most = round(SHIFT * size)
    shift = (draws * (2 * most + 1)).floor() - most
    place = torch.arange(size, device=draws.device)
    return place[None, :, None] - shift[:, None, None] == place


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


def _flip(images: Images, draws: Draws) -> Images:
    """Mirrored, every second time."""
    mirrored = draws[:, 0] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _quarters(images: Images, draws: Draws) -> Images:
    """Turned by 0, 90, 180 or 270 degrees."""
    quarters = (4 * draws[:, 0]).floor()[:, None, None, None]
    turned = images
    for times in (1, 2, 3):
        turned = torch.where(quarters == times, images.rot90(times, (2, 3)), turned)
    return turned


def _scale(images: Images, draws: Draws) -> Images:
    """Half an octave larger or smaller at most, about a place up to 1/8 from the middle; what
    comes in from outside is 0.

    Linear interpolation, axis by axis, by products with matrices: unlike a sampled grid it can be
    differentiated twice, as penalties do, and sums in one order on a GPU.
    """
    factor = torch.exp2(OCTAVES * (2 * draws[:, 0] - 1))
    rows, columns = (
        _interpolation(factor, draws[:, 1 + axis], size).to(images.dtype)[:, None]
        for axis, size in enumerate(images.shape[2:])
    )
    return rows @ images @ columns.transpose(2, 3)


def _interpolation(
    factor: Float[Tensor, " n"], draws: Float[Tensor, " n"], size: int
) -> Float[Tensor, "n s s"]:
    """What each place of the result takes from each place of the line."""
    place = torch.arange(size, device=draws.device) - (size - 1) / 2
    shift = (2 * draws - 1) * SHIFT * size
    source = place[None, :] / factor[:, None] - shift[:, None]
    near = factor.clamp(max=1)[:, None, None]  # a smaller result takes a mean of more
    taken = _triangle(source[:, :, None] - place[None, None, :], near)
    # What it would take of a line without ends, so that even fields stay even up to the border.
    between = (source - place[0]).frac()[:, :, None]
    around = torch.arange(-2, 4, device=draws.device)
    return taken / _triangle(between - around, near).sum(dim=2, keepdim=True)


def _triangle(distance: Float[Tensor, "n a b"], near: Float[Tensor, "n 1 1"]) -> Tensor:
    return (1 - distance.abs() * near).clamp(min=0)


POLICIES: dict[Policy, tuple[int, Callable[[Images, Draws], Images]]] = {
    "color": (0, _color),
    "translation": (4, _translation),
    "cutout": (8, _cutout),
    "flip": (12, _flip),
    "quarters": (16, _quarters),
    "scale": (20, _scale),
}
NUM_DRAWS = 4 * len(POLICIES)  # of each: whether it is applied, and three numbers
NUM_FIRST = 12  # of the policies that were here first: games drew these alone

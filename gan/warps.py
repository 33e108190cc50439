"""Images moved, turned and stretched, each by its own draws, as sums that autograd can take twice.

No sampled grid: its second derivative is missing, and its first sums in any order on a GPU. What
comes in from outside is 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Images = Float[Tensor, "n c h w"]
Draws = Float[Tensor, "n d"]  # each row an image's own, in [0, 1)
Own = Float[Tensor, " n"]  # a number of each image

SHIFT = 1 / 8  # of an image's size, at most
OCTAVES = 1 / 2  # by which `scale` and `stretch` enlarge or shrink, at most


def translation(images: Images, draws: Draws) -> Images:
    """A shift by whole pixels along each axis, at most by 1/8; exact."""
    rows, columns = (
        _shifted_identity(draws[:, axis], size).to(images.dtype)[:, None]
        for axis, size in enumerate(images.shape[2:])
    )
    return rows @ images @ columns.transpose(2, 3)


def _shifted_identity(draws: Own, size: int) -> Bool[Tensor, "n s s"]:
    most = round(SHIFT * size)
    shift = (draws * (2 * most + 1)).floor() - most
    place = torch.arange(size, device=draws.device)
    return place[None, :, None] - shift[:, None, None] == place


def flip(images: Images, draws: Draws) -> Images:
    """Mirrored, every second time."""
    mirrored = draws[:, 0] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def quarters(images: Images, draws: Draws) -> Images:
    """Turned by 0, 90, 180 or 270 degrees."""
    return _turned(images, (4 * draws[:, 0]).floor())


def rotation(images: Images, draws: Draws) -> Images:
    """Turned by any angle, anticlockwise: by quarters, then by 45 degrees at most in three shears
    (Paeth 1986), each of which moves every row, or column, by its own linear interpolation.
    """
    angle = 2 * math.pi * (draws[:, 0] - 0.5)
    times = (angle / (math.pi / 2)).round()
    rest = angle - times * (math.pi / 2)
    along, across = (rest / 2).tan(), -rest.sin()
    first, second = math.tan(math.pi / 8), math.sin(math.pi / 4)
    # What ends in the image leaves it by a row's largest move at most, between the first and last.
    beside = math.ceil(first * (images.shape[2] - 1) / 2) + 1
    turned = F.pad(_turned(images, times % 4), (beside, beside))
    turned = _sheared(turned, along, steepest=first)
    turned = _sheared(turned.mT, across, steepest=second).mT
    return _sheared(turned, along, steepest=first)[..., beside:-beside]


def scale(images: Images, draws: Draws) -> Images:
    """Half an octave larger or smaller at most, about a place up to 1/8 from the middle."""
    factor = torch.exp2(OCTAVES * (2 * draws[:, 0] - 1))
    shift = SHIFT * (2 * draws[:, 1:3] - 1)
    return _interpolated(images, (factor, factor), (shift[:, 0], shift[:, 1]))


def stretch(images: Images, draws: Draws) -> Images:
    """Half an octave wider and as much lower at most, or the other way round."""
    factor = torch.exp2(OCTAVES * (2 * draws[:, 0] - 1))
    still = torch.zeros_like(factor)
    return _interpolated(images, (1 / factor, factor), (still, still))


def _turned(images: Images, times: Own) -> Images:
    turned = images
    for count in (1, 2, 3):
        turned = torch.where(
            times[:, None, None, None] == count, images.rot90(count, (2, 3)), turned
        )
    return turned


def _sheared(images: Images, slope: Own, *, steepest: float) -> Images:
    """Each row moved to the right by `slope` times its distance below the middle, in pixels.

    Whole pixels are moved by the bits of their count, so that nothing is gathered by index: no
    slope may be steeper than `steepest`.
    """
    height, width = images.shape[2:]
    most = math.ceil(steepest * (height - 1) / 2)
    row = torch.arange(height, device=images.device, dtype=slope.dtype) - (height - 1) / 2
    shift = slope[:, None] * row
    whole = shift.floor()
    part = (shift - whole)[:, None, :, None].to(images.dtype)
    start = (most - whole.long()).clamp(0, 2 * most + 1)  # in the widened rows
    wide = F.pad(images, (most + 1, most + 1))
    for bit in range((2 * most + 1).bit_length()):
        moved = F.pad(wide[..., 1 << bit :], (0, 1 << bit))
        wide = torch.where((start[:, None, :, None] >> bit & 1).bool(), moved, wide)
    return (1 - part) * wide[..., 1 : width + 1] + part * wide[..., :width]


def _interpolated(images: Images, factors: tuple[Own, Own], shifts: tuple[Own, Own]) -> Images:
    """Enlarged along the rows and the columns, and shifted by shares of the image's size: linear
    interpolation by products with matrices, axis by axis.
    """
    rows, columns = (
        _interpolation(factors[axis], shifts[axis], size).to(images.dtype)[:, None]
        for axis, size in enumerate(images.shape[2:])
    )
    return rows @ images @ columns.transpose(2, 3)


def _interpolation(factor: Own, shift: Own, size: int) -> Float[Tensor, "n s s"]:
    """What each place of the result takes from each place of the line."""
    place = torch.arange(size, device=factor.device) - (size - 1) / 2
    source = place[None, :] / factor[:, None] - size * shift[:, None]
    near = factor.clamp(max=1)[:, None, None]  # a smaller result takes a mean of more
    taken = _triangle(source[:, :, None] - place[None, None, :], near)
    # What it would take of a line without ends, so that even fields stay even up to the border.
    between = (source - place[0]).frac()[:, :, None]
    around = torch.arange(-2, 4, device=factor.device)
    return taken / _triangle(between - around, near).sum(dim=2, keepdim=True)


def _triangle(distance: Float[Tensor, "n a b"], near: Float[Tensor, "n 1 1"]) -> Tensor:
    return (1 - distance.abs() * near).clamp(min=0)

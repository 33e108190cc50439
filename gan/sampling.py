"""Seeds to latents to images, and images to a grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from gan.config import ConfigError
from gan.networks import stylegan2
from gan.randomness import public_labels, public_latents

MAX_SEED = 2**32 - 1
BLOCK = 8  # images drawn at once: from 8 to 64 px the fastest, or within 15 % of it, in float64


def to_uint8(images: Float[Tensor, "n *shape"]) -> UInt8[Tensor, "n *shape"]:
    """Images in [-1, 1] to bytes, rounded to the nearest and clipped; float64 stays float64 up to
    the rounding.
    """
    wide = images if images.dtype == torch.float64 else images.float()
    return wide.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def exact(generator: nn.Module) -> nn.Module:
    """A copy of `generator` on the CPU in float64, in which a seed's image is the same bytes on
    every machine.

    Kernels sum in an order that depends on the CPU, the number of threads and the batch. In
    float32 that moves a value by up to 1e-6, in float64 by 1e-15: too little for a pixel to be
    rounded otherwise, but for one in some 10^12.
    """
    return copy.deepcopy(generator).to("cpu", torch.float64).eval().requires_grad_(False)


def classes_of(
    seeds: Sequence[int], *, num_classes: int, labels: Sequence[int | None] | None = None
) -> list[int] | None:
    """The class that each seed is drawn in: its label, or where that is None the seed's own pick.

    None where the generator knows no classes.
    """
    if not num_classes:
        return None
    picked = public_labels(np.asarray(seeds, dtype=np.int64), num_classes=num_classes).tolist()
    asked = labels or [None] * len(picked)
    return [own if label is None else label for own, label in zip(picked, asked, strict=True)]


@torch.no_grad()
def images_of(
    generator: nn.Module,
    seeds: Sequence[int],
    *,
    latent_dim: int,
    num_classes: int = 0,
    labels: Sequence[int | None] | None = None,
    truncation: Sequence[float] | float = 1.0,
) -> UInt8[Tensor, "n c h w"]:
    """One image for each public seed: the same seed, label and truncation give the same image.

    `truncation` in [0, 1] scales the latent towards the mean one, a stylegan2's style towards the
    mean style: less variety, safer images.
    Where the generator is conditional and a label is None, the seed picks the class. The module
    draws as it is, on its device and in its precision: only an `exact` one gives the same bytes
    on other machines and beside other seeds. Raises ConfigError for values out of range.
    """
    psi = np.broadcast_to(np.asarray(truncation, dtype=np.float64), (len(seeds),))
    _check(seeds, psi, labels=labels, num_classes=num_classes)
    z = public_latents(np.asarray(seeds, dtype=np.int64), latent_dim=latent_dim)
    picked = classes_of(seeds, num_classes=num_classes, labels=labels)
    classes = None if picked is None else torch.tensor(picked)
    first = next(generator.parameters())
    draw = _drawing(generator, psi, picked)
    blocks = []
    for start in range(0, len(z), BLOCK):
        part = slice(start, start + BLOCK)
        labels_here = None if classes is None else classes[part].to(first.device)
        near = torch.from_numpy(psi[part].astype(np.float32)).to(first)
        images = draw(z[part].to(first), labels_here, near)
        blocks.append(to_uint8(images).cpu())
    return torch.cat(blocks)


Draw = Callable[[Tensor, Tensor | None, Tensor], Tensor]  # of latents, labels and psi


def _drawing(generator: nn.Module, psi: np.ndarray, classes: Sequence[int] | None) -> Draw:
    """How images are drawn: truncated by shorter latents, or where G has styles, which do not
    depend on a latent's length, by styles nearer to their class's centre.
    """
    if not (psi < 1).any():
        return lambda z, labels, psi: generator(z, labels)
    if isinstance(generator, stylegan2.Generator):
        return _towards_centres(generator, classes)
    # In float32, as latents are: registered images were drawn so.
    return lambda z, labels, psi: generator((z.float() * psi.float()[:, None]).to(z), labels)


def _towards_centres(generator: stylegan2.Generator, classes: Sequence[int] | None) -> Draw:
    present = sorted(set(classes or ()))
    centres = torch.stack([generator.centre(label) for label in present or [None]])
    places = torch.tensor(present, device=centres.device)

    def draw(z: Tensor, labels: Tensor | None, psi: Tensor) -> Tensor:
        which = 0 if labels is None else torch.searchsorted(places, labels)
        return generator.truncated(z, labels, psi, centres[which].expand(len(z), -1))

    return draw


def _check(
    seeds: Sequence[int],
    psi: np.ndarray,
    *,
    labels: Sequence[int | None] | None,
    num_classes: int,
) -> None:
    mistakes = []
    if not seeds:
        mistakes.append("at least one seed is needed, got none")
    if labels is not None and len(labels) != len(seeds):
        mistakes.append(f"{len(seeds)} seeds need as many labels, got {len(labels)}")
    bad_seeds = [seed for seed in seeds if not 0 <= seed <= MAX_SEED]
    if bad_seeds:
        mistakes.append(f"seed must be between 0 and {MAX_SEED}, got {bad_seeds[0]}")
    if not ((psi >= 0) & (psi <= 1)).all():
        mistakes.append(f"truncation must be in [0, 1], got {psi[~((psi >= 0) & (psi <= 1))][0]}")
    asked = [label for label in labels or () if label is not None]
    if asked and num_classes == 0:
        mistakes.append(f"this generator knows no labels, got label {asked[0]}")
    elif bad := [label for label in asked if not 0 <= label < num_classes]:
        mistakes.append(f"label must be between 0 and {num_classes - 1}, got {bad[0]}")
    if mistakes:
        raise ConfigError(mistakes)


def grid(
    images: UInt8[Tensor, "n c h w"], *, columns: int | None = None, border_px: int = 1
) -> UInt8[np.ndarray, "height width c"]:
    """Images in rows of `columns` (about square where left out), dark lines between."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_y, step_x = height + border_px, width + border_px
    page = np.full(
        (rows * step_y + border_px, columns * step_x + border_px, channels), 32, np.uint8
    )
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top = border_px + index // columns * step_y
        left = border_px + index % columns * step_x
        page[top : top + height, left : left + width] = image
    return page


def fixed_labels(count: int, *, num_classes: int) -> Int64[Tensor, " n"] | None:
    """Labels for a preview: the classes in turn, so that a grid shows each; None where there are
    none.
    """
    return torch.arange(count) % num_classes if num_classes else None

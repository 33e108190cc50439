"""Images to feature vectors, by extractors that have a name and a checksum."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

POOLED_PX = 8
# What features depend on besides the weights: a change of either is another extractor.
PIXELS_RECIPE = f"pixels {POOLED_PX}"
CLASSIFIER_RECIPE = "classifier 1"


@dataclass(frozen=True, slots=True)
class Extractor:
    """A named map from uint8 images (n, c, h, w), or float vectors, to features (n, dim).

    The same samples in the same blocks give the same features; in other blocks they are equal to
    rounding.
    """

    name: str
    sha256: str  # of the recipe and the weights; scores of different ones are never compared
    dim: int
    module: nn.Module  # float samples (n, *shape), images in [-1, 1], to features
    shape: tuple[int, ...]  # of the samples that it was made for
    resize: str = "none"  # filter and size, where the network sees images of another size
    fid: bool = False  # whether a Frechet distance on these features may be called FID

    def __post_init__(self) -> None:
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, samples: UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"]) -> Tensor:
        """Features (n, dim) of `samples`, on their device."""
        assert tuple(samples.shape[1:]) == self.shape, (samples.shape, self.shape)
        x = samples.float()
        if samples.dtype == torch.uint8:
            x = x / 127.5 - 1
        # TF32 would round a GPU's features to three digits, and so tell devices apart.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            return self.module(x)


def extractor_sha256(recipe: str, *, weights_sha256: str = "") -> str:
    """What identifies an extractor: sha256 of its recipe (architecture and preprocessing, with a
    version) and of its weights' own sha256.
    """
    return hashlib.sha256(f"{recipe} {weights_sha256}".rstrip().encode()).hexdigest()


class Pixels(nn.Module):
    """The image itself, averaged down to 8x8; vectors as they are. Blind to fine detail, sees lost
    modes.
    """

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        if x.ndim == 4 and x.shape[2] > POOLED_PX:
            x = F.adaptive_avg_pool2d(x, POOLED_PX)
        return x.flatten(1)


def pixels(shape: tuple[int, ...]) -> Extractor:
    """The extractor that needs no weights, for data that no classifier was trained on."""
    if len(shape) == 3:
        shown = (shape[0], min(shape[1], POOLED_PX), min(shape[2], POOLED_PX))
    else:
        shown = shape
    return Extractor(
        "pixels",
        extractor_sha256(PIXELS_RECIPE),
        math.prod(shown),
        Pixels(),
        shape,
        resize=f"mean to {POOLED_PX} px" if shown != shape else "none",
    )


class Photographs(nn.Module):
    """A network made for colour photographs of `size_px`, shown images (n, 1 or 3, h, w) of any
    size in [-1, 1].

    Grey images are repeated to three channels. 'bicubic' is widened where it shrinks (antialiased)
    and cut off at -1 and 1; 'bilinear' is the plain one of four neighbours.
    """

    def __init__(
        self, network: nn.Module, *, size_px: int, filter: Literal["bicubic", "bilinear"]
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore
        self.size_px, self.filter = size_px, filter

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        # As many at a time as a processor's caches hold: up to four times faster than 100.
        at_once = min(25, max(4, 160_000 // self.size_px**2))
        return torch.cat([self.network(self._shown(part)) for part in x.split(at_once)])

    def resize_of(self, shape: tuple[int, ...]) -> str:
        """What is done to images of `shape`, for the record."""
        if shape[1:] == (self.size_px, self.size_px):
            return "none"
        widened = "antialiased " if self.filter == "bicubic" else ""
        return f"{widened}{self.filter} to {self.size_px} px"

    def _shown(self, x: Tensor) -> Tensor:
        size = (self.size_px, self.size_px)
        if tuple(x.shape[2:]) != size:
            if self.filter == "bicubic":
                x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
            else:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


class Classifier(nn.Module):
    """A small convolutional classifier; its features are the last hidden layer (n, FEATURES).

    From 128 px on it begins with a coarser look, and halves once more for each doubling, so that
    the last convolutions see shapes and not only texture.
    """

    FEATURES = 64

    def __init__(self, shape: tuple[int, int, int], *, num_classes: int, width: int = 16):
        super().__init__()
        channels, size, _ = shape
        kernel, stride = (5, 2) if size < 128 else (7, 4)
        stages: list[nn.Module] = [
            nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if size >= 16 else nn.Identity(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
        ]
        reached = size // stride // 2
        while size >= 128 and reached > 8:
            stages += [
                nn.MaxPool2d(2),
                nn.Conv2d(4 * width, 4 * width, 3, padding=1),
                nn.ReLU(),
            ]
            reached //= 2
        self.stages = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.hidden = nn.Linear(4 * width * 16, self.FEATURES)
        self.classes = nn.Linear(self.FEATURES, num_classes)

    def features(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n f"]:
        """The last hidden layer, for images in [-1, 1]."""
        return F.relu(self.hidden(self.stages(x)))

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n k"]:
        """Class logits, for images in [-1, 1]."""
        return self.classes(self.features(x))


class _Features(nn.Module):
    """A classifier seen by its features."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n f"]:
        return self.classifier.features(x)


def classifier_features(
    name: str, classifier: Classifier, *, shape: tuple[int, ...], weights_sha256: str
) -> Extractor:
    """The extractor that a trained classifier makes."""
    digest = classifier_sha256(weights_sha256)
    return Extractor(name, digest, Classifier.FEATURES, _Features(classifier), shape)


def classifier_sha256(weights_sha256: str) -> str:
    """What identifies the extractor that a classifier with these weights makes."""
    return extractor_sha256(CLASSIFIER_RECIPE, weights_sha256=weights_sha256)

"""Images to feature vectors, by extractors that have a name and a checksum."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

POOLED_PX = 8


@dataclass(frozen=True, slots=True)
class Extractor:
    """A named map from uint8 images (n, c, h, w), or float vectors, to features (n, dim)."""

    name: str
    sha256: str  # of the weights; scores of different extractors are never compared
    dim: int
    module: nn.Module
    shape: tuple[int, ...]  # of the samples that it was made for
    resize: str = "none"
    fid: bool = False

    @torch.no_grad()
    def __call__(self, samples: UInt8[Tensor, "n c h w"] | Float[Tensor, "n d"]) -> Tensor:
        """Features (n, dim) of `samples`, on their device."""
        assert tuple(samples.shape[1:]) == self.shape, (samples.shape, self.shape)
        x = samples.float()
        if samples.dtype == torch.uint8:
            x = x / 127.5 - 1
        return self.module(x)


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
    digest = hashlib.sha256(f"pixels {POOLED_PX}".encode()).hexdigest()
    return Extractor("pixels", digest, math.prod(shown), Pixels(), shape)


class Classifier(nn.Module):
    """A small convolutional classifier; its features are the last hidden layer (n, FEATURES)."""

    FEATURES = 64

    def __init__(self, shape: tuple[int, int, int], *, num_classes: int, width: int = 16):
        super().__init__()
        channels, size, _ = shape
        self.stages = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if size >= 16 else nn.Identity(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
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
        self.classifier = classifier.eval().requires_grad_(False)

    def forward(self, x: Float[Tensor, "n c s s"]) -> Float[Tensor, "n f"]:
        return self.classifier.features(x)


def classifier_features(
    name: str, classifier: Classifier, *, shape: tuple[int, ...], sha256: str
) -> Extractor:
    """The extractor that a trained classifier makes."""
    return Extractor(name, sha256, Classifier.FEATURES, _Features(classifier), shape)

"""Feature extractors by name: the ones that ship with Forger, and those trained on a data set of
one's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from gan.config import ConfigError
from gan.features import Classifier, Extractor, classifier_features, pixels
from gan.randomness import derive_seed, generator
from pipeline.dataset import ShardSet
from pipeline.loader import permute
from pipeline.shards import ShardReader
from pipeline.storage import Folder

SHIPPED = ("digits",)
TENSORS = "classifier.safetensors"
CARD = "extractor.json"
SHIFT_PX = 2  # training images are moved by up to this much, the one augmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorCard:
    """What a trained extractor is, and how well its classifier does on images it never saw."""

    name: str
    shape: tuple[int, ...]
    num_classes: int
    sha256: str
    data_digest: str
    num_train: int
    num_held_out: int
    held_out_accuracy: float


def load_extractor(
    name: str, shape: tuple[int, ...], *, weights: str | None = None, sha256: str | None = None
) -> Extractor:
    """The extractor called `name` for samples of `shape`.

    'pixels' needs no weights; 'digits' ships with Forger; anything else is the folder that `forger
    extractor train` made. Raises ConfigError where there is none, or it was made for another
    shape.
    """
    if name == "pixels":
        return pixels(shape)
    folder = (
        files("pipeline") / "embedded" / f"extractor-{name}" if name in SHIPPED else Path(name)
    )
    storage = Folder(str(folder))
    try:
        card = ExtractorCard(**json.loads(storage.read(CARD)))
        data = storage.read(TENSORS)
    except FileNotFoundError:
        raise ConfigError(
            [
                f"evaluate.extractor must be 'pixels', {', '.join(map(repr, SHIPPED))} or a "
                f"folder that `forger extractor train` made, got {name!r}"
            ]
        ) from None
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise ConfigError([f"{storage.uri}/{TENSORS} is damaged (its sha256 differs from {CARD})"])
    if tuple(card.shape) != tuple(shape):
        raise ConfigError(
            [
                f"evaluate.extractor = {name!r} looks at samples of "
                f"{' x '.join(map(str, card.shape))}, "
                f"the data has {' x '.join(map(str, shape))}; choose 'pixels' or train one"
            ]
        )
    classifier = _classifier(card.shape, card.num_classes)
    classifier.load_state_dict(safetensors.torch.load(data))
    return classifier_features(card.name, classifier, shape=tuple(shape), sha256=card.sha256)


def absolute_name(name: str) -> str:
    """`name` as it is understood from any folder: workers run in one of Ray's."""
    return name if name in ("pixels", *SHIPPED) else str(Path(name).expanduser().resolve())


def train_extractor(
    shards: ShardSet,
    destination: str,
    *,
    name: str,
    epochs: int = 20,
    batch_size: int = 100,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractorCard:
    """Trains a small classifier on the labels of `shards` and publishes it as an extractor.

    A fifth of the images is held out for its accuracy. Raises ConfigError where the data has no
    labels.
    """
    if shards.num_classes < 2:
        raise ConfigError([f"{shards.uri} has no labels to train a classifier on"])
    reader = ShardReader(shards)
    order = permute(np.arange(shards.num_images), size=shards.num_images, key=seed)
    num_train = shards.num_images * 4 // 5
    if num_train < 1:
        raise ConfigError([f"{shards.uri} holds too few images to train on and hold some out"])
    batch_size = min(batch_size, num_train)
    images, labels = reader.take(order)
    assert labels is not None
    train, held_out = slice(None, num_train), slice(num_train, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init/extractor", 0))
        classifier = _classifier(shards.sample.shape, shards.num_classes)
    _fit(
        classifier, images[train], labels[train], epochs, batch_size, seed=seed, progress=progress
    )
    accuracy = classifier_accuracy(classifier, images[held_out], labels[held_out])

    data = safetensors.torch.save({k: v.contiguous() for k, v in classifier.state_dict().items()})
    card = ExtractorCard(
        name=name,
        shape=shards.sample.shape,
        num_classes=shards.num_classes,
        sha256=hashlib.sha256(data).hexdigest(),
        data_digest=shards.digest,
        num_train=num_train,
        num_held_out=shards.num_images - num_train,
        held_out_accuracy=round(accuracy, 5),
    )
    storage = Folder(destination)
    storage.write(TENSORS, data)
    storage.write(CARD, json.dumps(dataclasses.asdict(card), indent=1).encode() + b"\n")
    return card


@torch.no_grad()
def classifier_accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> float:
    """The share of uint8 images (n, c, h, w) whose class the classifier names."""
    classifier.eval()
    right = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right += int((classifier(x.float() / 127.5 - 1).argmax(1) == y).sum())
    return right / len(labels)


def _classifier(shape: tuple[int, ...], num_classes: int) -> Classifier:
    channels, height, width = shape
    return Classifier((channels, height, width), num_classes=num_classes)


def _fit(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    batch_size: int,
    *,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    """Adam with a one-cycle rate on images shifted at random."""
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.Adam(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        rng = generator(seed, "extractor", step)
        rows = torch.randint(len(images), (batch_size,), generator=rng)
        x = _shifted(images[rows].float() / 127.5 - 1, rng)
        loss = F.cross_entropy(classifier(x), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)


def _shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    padded = F.pad(x, (SHIFT_PX,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * SHIFT_PX + 1, (2,), generator=rng).tolist()
    return padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]

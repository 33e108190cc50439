"""A feature extractor of one's own: a small classifier trained on a data set's labels, seen by its
last hidden layer.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from gan.config import ConfigError
from gan.features import Classifier, Extractor, classifier_features
from gan.randomness import generator
from gan.seeds import derive_seed
from pipeline.dataset import ShardSet
from pipeline.extractor_names import CARD, EXTRACTOR_NAME
from pipeline.extractor_plugins import described
from pipeline.folder import Folder
from pipeline.order import permute
from pipeline.shards import ShardReader
from pipeline.weights import load_strictly, sha256_of, tensors

TENSORS = "classifier.safetensors"
SHIFT_PX = 2  # training images are moved by up to this much, the one augmentation
MIN_PER_CLASS = 10  # below, a class may have none held out, and the accuracy says nothing
BLOCK = 100  # images in one forward pass when the classifier is tried

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractorCard:
    """What a trained extractor is, and how well its classifier does on images it never saw."""

    name: str
    shape: tuple[int, ...]
    num_classes: int
    sha256: str  # of the weights
    data_digest: str
    num_train: int
    num_held_out: int
    held_out_accuracy: float
    chance_accuracy: float | None = None  # of always naming the most frequent class


def load_trained(
    storage: Folder, shape: tuple[int, ...], *, taken: tuple[str, ...] = ()
) -> Extractor:
    """The extractor in a folder that `train_extractor` filled, for samples of `shape`.

    Raises ConfigError where it is damaged, was made for another shape, or bears one of the names
    that are `taken`.
    """
    card = read_card(storage)
    _check_name(card.name, taken=taken)
    classifier = load_classifier(storage)
    if tuple(card.shape) != tuple(shape):
        raise ConfigError(
            [
                f"the extractor {card.name!r} looks at samples of {described(card.shape)}, the "
                f"data has {described(shape)}; choose 'pixels' or train one"
            ]
        )
    return classifier_features(
        card.name, classifier, shape=tuple(shape), weights_sha256=card.sha256
    )


def load_classifier(storage: Folder) -> Classifier:
    """The classifier itself, which names classes. Raises ConfigError where it is damaged."""
    card = read_card(storage)
    source = f"{storage.uri}/{TENSORS}"
    try:
        data = storage.read(TENSORS)
    except FileNotFoundError:
        raise ConfigError([f"{source} is missing; train the extractor again"]) from None
    if sha256_of(data) != card.sha256:
        raise ConfigError([f"{source} is damaged (its sha256 differs from {CARD})"])
    classifier = _classifier(card.shape, card.num_classes)
    load_strictly(classifier, tensors(data, source=source), source=source)
    return classifier


def read_card(storage: Folder) -> ExtractorCard:
    """The card of a trained extractor. Raises ConfigError where there is none or it is damaged."""
    try:
        return ExtractorCard(**json.loads(storage.read(CARD)))
    except FileNotFoundError:
        raise ConfigError(
            [f"there is no extractor at {storage.uri}; make one with `forger extractor train`"]
        ) from None
    except (TypeError, ValueError) as error:
        raise ConfigError([f"{storage.uri}/{CARD} is damaged ({error}); train again"]) from None


def train_extractor(
    shards: ShardSet,
    destination: str,
    *,
    taken: tuple[str, ...] = (),
    epochs: int = 20,
    batch_size: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> ExtractorCard:
    """Trains a small classifier on the labels of `shards` and publishes it as an extractor, named
    after the folder `destination`.

    A fifth of the images is held out for its accuracy. Images are read batch by batch, so memory
    does not grow with the data. Raises ConfigError where a class has too few images, or the name
    is of no use.
    """
    name = PurePath(destination).name.removeprefix("extractor-")
    _check_name(name, taken=taken)
    storage = Folder(destination)
    if storage.exists(CARD):
        raise ConfigError(
            [f"{storage.uri} already holds an extractor; choose another folder or delete it"]
        )
    reader = ShardReader(shards)
    _check_classes(shards, reader)
    numbers = permute(np.arange(shards.num_images), size=shards.num_images, key=seed)
    num_train = shards.num_images * 4 // 5
    train, held_out = numbers[:num_train], numbers[num_train:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init/extractor", 0))
        classifier = _classifier(shards.sample.shape, shards.num_classes)
    steps = epochs * max(1, num_train // batch_size)
    total = steps + -(-len(held_out) // BLOCK)
    rounds = _Rounds(steps, min(batch_size, num_train), seed)
    _fit(classifier, reader, train, rounds, progress=lambda done: progress(done, total))
    accuracy = classifier_accuracy(
        classifier, reader, held_out, progress=lambda done: progress(steps + done, total)
    )
    counts = np.bincount(reader.labels(held_out).numpy())
    data = safetensors.torch.save({k: v.contiguous() for k, v in classifier.state_dict().items()})
    card = ExtractorCard(
        name=name,
        shape=shards.sample.shape,
        num_classes=shards.num_classes,
        sha256=sha256_of(data),
        data_digest=shards.digest,
        num_train=num_train,
        num_held_out=len(held_out),
        held_out_accuracy=round(accuracy, 5),
        chance_accuracy=round(float(counts.max() / counts.sum()), 5),
    )
    storage.write(TENSORS, data)
    storage.write(CARD, json.dumps(dataclasses.asdict(card), indent=1).encode() + b"\n")
    return card


@torch.no_grad()
def classifier_accuracy(
    classifier: Classifier,
    reader: ShardReader,
    numbers: np.ndarray,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> float:
    """The share of the numbered images whose class the classifier names."""
    classifier.eval()
    right = 0
    for start in range(0, len(numbers), BLOCK):
        images, labels = reader.take(numbers[start : start + BLOCK])
        assert labels is not None
        right += int((classifier(images.float() / 127.5 - 1).argmax(1) == labels).sum())
        progress(start // BLOCK + 1)
    return right / len(numbers)


def _check_name(name: str, *, taken: tuple[str, ...]) -> None:
    """Scores bear the name, so it must fit there and mean one extractor."""
    if not EXTRACTOR_NAME.fullmatch(name):
        raise ConfigError(
            [
                "an extractor is named after its folder, in 1 to 63 letters, digits, '-' and '_', "
                f"got {name!r}; choose another folder"
            ]
        )
    if name in taken:
        raise ConfigError(
            [f"{name!r} is the name of one of Forger's own extractors; choose another folder"]
        )


def _check_classes(shards: ShardSet, reader: ShardReader) -> None:
    if shards.num_classes < 2:
        raise ConfigError(
            [
                f"{shards.uri} has {shards.num_classes or 'no'} classes, a classifier needs two: "
                f"prepare a folder with a sub-folder for each, or evaluate with 'lite0'"
            ]
        )
    labels = reader.labels(np.arange(shards.num_images)).numpy()
    if labels.min() < 0:
        raise ConfigError(
            [f"{(labels < 0).sum()} of the images in {shards.uri} have no label; leave them out"]
        )
    counts = np.bincount(labels, minlength=shards.num_classes)
    few = [
        f"{shards.classes[k]!r} has {counts[k]}" for k in np.flatnonzero(counts < MIN_PER_CLASS)
    ]
    if few:
        raise ConfigError(
            [
                f"{shards.uri} holds too few images to train on and hold some out: every class "
                f"needs {MIN_PER_CLASS}, {', '.join(few[:3])}{' ...' if len(few) > 3 else ''}"
            ]
        )


def _classifier(shape: tuple[int, ...], num_classes: int) -> Classifier:
    channels, height, width = shape
    return Classifier((channels, height, width), num_classes=num_classes)


@dataclass(frozen=True, slots=True)
class _Rounds:
    steps: int
    batch_size: int
    seed: int


def _fit(
    classifier: Classifier,
    reader: ShardReader,
    numbers: np.ndarray,
    rounds: _Rounds,
    *,
    progress: Callable[[int], None],
) -> None:
    """Adam with a one-cycle rate on images shifted at random."""
    optimizer = torch.optim.Adam(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=rounds.steps
    )
    for step in range(rounds.steps):
        rng = generator(rounds.seed, "extractor", step)
        rows = torch.randint(len(numbers), (rounds.batch_size,), generator=rng)
        images, labels = reader.take(numbers[rows.numpy()])
        assert labels is not None
        x = _shifted(images.float() / 127.5 - 1, rng)
        loss = F.cross_entropy(classifier(x), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1)


def _shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    padded = F.pad(x, (SHIFT_PX,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * SHIFT_PX + 1, (2,), generator=rng).tolist()
    return padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]

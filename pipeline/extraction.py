"""Images to feature files, in chunks that any process can make: on this one, or on Ray's workers.

A chunk that is there is not made again, so a killed evaluation goes on, one that grows adds to
what it has, and reals are looked at once for every evaluation against them. Features are those of
fixed blocks of images, the same whoever makes them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from gan.config import ConfigError
from gan.features import Extractor
from gan.randomness import generator, latents
from gan.sampling import to_uint8
from pipeline.dataset import ShardSet, open_shards
from pipeline.devices import device_here
from pipeline.extractors import load_extractor
from pipeline.protocol import BLOCK
from pipeline.shards import ShardReader
from pipeline.snapshot import Snapshot, read_snapshot, write_snapshot
from pipeline.storage import Storage, open_storage

FEATURES = "_features"  # below the storage; no run can have this name
CHUNK = 10 * BLOCK  # images in one file, and in one task
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Eye:
    """An extractor by what any process needs to load it."""

    extractor: str
    weights: str | None = None
    weights_sha256: str | None = None

    def open(self, shape: tuple[int, ...]) -> Extractor:
        """The extractor for samples of `shape`. Raises ConfigError where there is none."""
        return load_extractor(
            self.extractor, shape, weights=self.weights, sha256=self.weights_sha256
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is looked at and through what: the images of a data set, or those that G forges."""

    eye: Eye
    shards: str  # the data set; for forged images, the one whose labels are forged under
    generator: str | None = None  # the folder of a snapshot; None: the data's own images
    stream: str = ""  # of the latents and labels
    seed: int = 0
    folder: str  # where the features go


@dataclass(frozen=True, slots=True)
class Features:
    """Feature vectors (n, d) float32 of images, and their labels (n,) where there are any."""

    vectors: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.vectors)


def reals(eye: Eye, shards: ShardSet, *, storage: str) -> Look:
    """Looks at all images of `shards`; the features are kept for whoever comes next."""
    extractor = eye.open(shards.sample.shape)
    name = _name("real", shards.digest, extractor.sha256, extractor.resize)
    return Look(eye=eye, shards=shards.uri, folder=f"{storage}/{FEATURES}/{name}")


def forgeries(
    snapshot: Snapshot, eye: Eye, shards: ShardSet, *, stream: str, seed: int, storage: str
) -> Look:
    """Looks at what the generator forges from the latents of (seed, stream)."""
    extractor = eye.open(shards.sample.shape)
    name = _name("fake", snapshot.sha256, extractor.sha256, extractor.resize, shards.digest,
                 stream, seed)  # fmt: skip
    folder = open_storage(f"{storage}/{FEATURES}/{name}")
    if not folder.exists("generator/snapshot.json"):
        write_snapshot(folder, "generator", snapshot.card, snapshot.module)
    return Look(
        eye=eye,
        shards=shards.uri,
        generator=folder.below("generator").uri,
        stream=stream,
        seed=seed,
        folder=folder.uri,
    )


def _name(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([*parts, BLOCK]).encode()).hexdigest()[:32]


def extract(
    look: Look, *, images: int, each: Each, progress: Progress = lambda done, total: None
) -> Features:
    """Features of the first `images` images of `look`; `each` decides who makes missing chunks."""
    folder = open_storage(look.folder)
    starts = range(0, images, CHUNK)
    missing = [start for start in starts if not _is_kept(folder, start)]
    progress(len(starts) - len(missing), len(starts))
    jobs = [(look, start) for start in missing]
    for done, _ in enumerate(each(extract_chunk, jobs), start=len(starts) - len(missing) + 1):
        progress(done, len(starts))
    parts = [_read(folder, start) for start in starts]
    vectors = torch.cat([part["features"] for part in parts])[:images]
    labels = torch.cat([part["labels"] for part in parts])[:images]
    return Features(vectors, None if (labels < 0).any() else labels)


def forget(look: Look) -> None:
    """Removes the features of a look that nobody will come back to."""
    folder = open_storage(look.folder)
    for name in folder.names():
        folder.delete(name)


def here(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Makes chunks in this process, one after the other."""
    for job in jobs:
        yield function(*job)


def extract_chunk(look: Look, start: int, threads: int | None = None) -> None:
    """Publishes the features of the CHUNK images of `look` from `start` on; safe to repeat."""
    if threads is not None:
        torch.set_num_threads(threads)
    device = device_here()
    shards, reader, extractor, snapshot = _opened(look, device)
    features, labels = [], []
    end = start + CHUNK if snapshot else min(start + CHUNK, shards.num_images)
    for block in range(start, end, BLOCK):
        if snapshot is None:
            images, classes = reader.take(np.arange(block, min(block + BLOCK, end)))
        else:
            images, classes = _forge(snapshot, reader, look, block)
        features.append(extractor(images.to(device)).float().cpu())
        labels.append(torch.full((len(images),), -1) if classes is None else classes.cpu())
    data = {"features": torch.cat(features).contiguous(), "labels": torch.cat(labels)}
    open_storage(look.folder).write(_chunk(start), safetensors.torch.save(data))


def images_at(look: Look, numbers: Sequence[int]) -> Tensor:
    """The images (n, c, h, w) uint8 of the given numbers of `look`, as the extractor saw them."""
    _, reader, _, snapshot = _opened(look, "cpu")
    if snapshot is None:
        return reader.take(np.asarray(numbers))[0]
    blocks = [divmod(number, BLOCK) for number in numbers]
    return torch.stack(
        [_forge(snapshot, reader, look, block * BLOCK)[0][row] for block, row in blocks]
    )


@cache
def _opened(look: Look, device: str) -> tuple[ShardSet, ShardReader, Extractor, Snapshot | None]:
    """What a chunk needs, kept by a process that makes several."""
    shards = open_shards(look.shards)
    extractor = look.eye.open(shards.sample.shape)
    extractor.module.to(device)
    snapshot = None
    if look.generator is not None:
        snapshot = read_snapshot(open_storage(look.generator), ".")
        snapshot.module.to(device)
    return shards, ShardReader(shards), extractor, snapshot


@torch.no_grad()
def _forge(
    snapshot: Snapshot, reader: ShardReader, look: Look, start: int
) -> tuple[Tensor, Tensor | None]:
    """Images and labels of the block that begins at number `start`."""
    latent_dim = snapshot.card.generator.latent_dim
    z = latents(look.seed, look.stream, start, batch_size=BLOCK, latent_dim=latent_dim)
    first = next(snapshot.module.parameters())
    labels = None
    if snapshot.card.conditioning != "none":
        rng = generator(look.seed, f"{look.stream}/labels", start)
        drawn = torch.randint(reader.shards.num_images, (BLOCK,), generator=rng)
        labels = reader.labels(drawn.numpy()).to(first.device)
    images = snapshot.module(z.to(first), labels)
    if not torch.isfinite(images).all():  # as bytes they would only be black
        raise ConfigError(["the generator draws values that are no numbers; it has diverged"])
    return to_uint8(images), labels


def _chunk(start: int) -> str:
    return f"{start:09d}.safetensors"


def _is_kept(folder: Storage, start: int) -> bool:
    """Whether a chunk is there and can be read."""
    try:
        return bool(_read(folder, start))
    except (FileNotFoundError, SafetensorError):
        return False


def _read(folder: Storage, start: int) -> dict[str, Tensor]:
    return safetensors.torch.load(folder.read(_chunk(start)))


def eye_of(settings: Any) -> Eye:
    """The extractor that an experiment's [evaluate] section names."""
    return Eye(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Eye)})

"""A snapshot: G_ema and all that sampling needs, as safetensors and JSON in one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import safetensors.torch
from torch import Tensor, nn

from gan.config import ConfigError
from gan.networks import build_generator
from gan.sampling import classes_of, exact, images_of
from pipeline.card import CARD, SCHEMA, TENSORS, SnapshotCard, card_of, part_of

if TYPE_CHECKING:  # a registered generator carries this file, but not the storage
    from pipeline.storage import Storage


@dataclass(frozen=True)
class Snapshot:
    """A generator to draw images from; `sha256` is of its weights."""

    card: SnapshotCard
    module: nn.Module
    sha256: str

    @cached_property
    def exact(self) -> nn.Module:
        """The generator as it draws for the public; see gan.sampling.exact."""
        return exact(self.module)

    @property
    def num_classes(self) -> int:
        """How many classes can be asked for; 0 where the generator knows none."""
        return self.card.sample.num_classes if self.card.conditioning != "none" else 0

    def images(
        self,
        seeds: Sequence[int],
        *,
        labels: Sequence[int | None] | None = None,
        truncation: Sequence[float] | float = 1.0,
    ) -> Tensor:
        """uint8 images (n, c, h, w), one for each seed, the same bytes on every machine.

        See gan.sampling.images_of for labels, truncation and what is refused.
        """
        return images_of(
            self.exact,
            seeds,
            latent_dim=self.card.generator.latent_dim,
            num_classes=self.num_classes,
            labels=labels,
            truncation=truncation,
        )

    def labels(
        self, seeds: Sequence[int], *, labels: Sequence[int | None] | None = None
    ) -> list[int] | None:
        """The class that each of `images` shows: the one asked for, or the seed's own pick."""
        return classes_of(seeds, num_classes=self.num_classes, labels=labels)


def write_snapshot(storage: Storage, folder: str, card: SnapshotCard, module: nn.Module) -> None:
    """Publishes weights and card below `folder`, the card last."""
    for name, data in packed(card, module).items():
        storage.write(f"{folder}/{name}", data)


def packed(card: SnapshotCard, module: nn.Module) -> dict[str, bytes]:
    """The files of a snapshot, in the order in which they are to be published."""
    weights = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    data = safetensors.torch.save(weights)
    record = {"schema": SCHEMA, "sha256": hashlib.sha256(data).hexdigest()}
    record["card"] = dataclasses.asdict(card)
    return {TENSORS: data, CARD: json.dumps(record, indent=1).encode()}


def read_snapshot(storage: Storage, folder: str) -> Snapshot:
    """The generator below `folder`, checked against its sha256. Raises ConfigError where it is not
    whole.
    """
    card, weights = (part_of(storage, folder, name) for name in (CARD, TENSORS))
    return load_snapshot(card, weights, where=storage.below(folder).uri)


def load_snapshot(card: bytes, weights: bytes, *, where: str) -> Snapshot:
    """The generator of a card's and a weights file's bytes; `where` names their folder in errors.

    Raises ConfigError where they are damaged or do not belong together.
    """
    read, sha256 = card_of(card, where)
    if hashlib.sha256(weights).hexdigest() != sha256:
        raise ConfigError([f"{where}/{TENSORS} is damaged (its sha256 differs from {CARD})"])
    state = safetensors.torch.load(weights)
    module = build_generator(
        read.generator, conditioning=read.conditioning, sample=read.sample, seed=0
    )
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    module.to(dtype).load_state_dict(state)
    return Snapshot(read, module.eval().requires_grad_(False), sha256)

"""A snapshot: G_ema and all that sampling needs, as safetensors and JSON in one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from gan.config import Conditioning, ConfigError, GeneratorConfig, Sample
from gan.networks import build_generator
from gan.sampling import images_of
from pipeline.storage import Folder

SCHEMA = 1
TENSORS = "generator.safetensors"
CARD = "snapshot.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCard:
    """What the weights are: the generator's config, its data, its scores and its origin."""

    nimg: int
    generator: GeneratorConfig
    conditioning: Conditioning
    sample: Sample
    classes: tuple[str, ...]
    scores: dict[str, float]  # by full name: score/fd_digits_5k
    lineage: dict[str, Any]

    def score(self, metric: str) -> float | None:
        """The score by 'fd' or 'kid', whatever extractor and sample count it was taken with."""
        found = [v for name, v in self.scores.items() if name.startswith(f"score/{metric}_")]
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A generator to draw images from; `sha256` is of its weights."""

    card: SnapshotCard
    module: nn.Module
    sha256: str

    def images(
        self,
        seeds: list[int],
        *,
        labels: list[int | None] | None = None,
        truncation: list[float] | float = 1.0,
    ) -> Tensor:
        """uint8 images (n, c, h, w), one for each seed; see gan.sampling.images_of."""
        conditional = self.card.conditioning != "none"
        return images_of(
            self.module,
            seeds,
            latent_dim=self.card.generator.latent_dim,
            num_classes=self.card.sample.num_classes if conditional else 0,
            labels=labels,
            truncation=truncation,
        )


def write_snapshot(storage: Folder, folder: str, card: SnapshotCard, module: nn.Module) -> str:
    """Publishes weights and card below `folder`, the card last; returns the weights' sha256."""
    weights = {
        name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    data = safetensors.torch.save(weights)
    sha256 = hashlib.sha256(data).hexdigest()
    storage.write(f"{folder}/{TENSORS}", data)
    record = {"schema": SCHEMA, "sha256": sha256, "card": dataclasses.asdict(card)}
    storage.write(f"{folder}/{CARD}", json.dumps(record, indent=1).encode())
    return sha256


def read_card(storage: Folder, folder: str) -> tuple[SnapshotCard, str]:
    """The card of the snapshot below `folder`, and its weights' sha256. Raises ConfigError if it
    is none.
    """
    try:
        record = json.loads(storage.read(f"{folder}/{CARD}"))
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
        card = TypeAdapter(SnapshotCard).validate_json(json.dumps(record["card"]))
        return card, str(record["sha256"])
    except FileNotFoundError:
        raise ConfigError(
            [f"there is no snapshot in {storage.path(folder)} (no {CARD})"]
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{storage.path(folder)}/{CARD} is damaged: {error}"]) from None


def read_snapshot(storage: Folder, folder: str) -> Snapshot:
    """The generator below `folder`, checked against its sha256. Raises ConfigError where it is not
    whole.
    """
    card, sha256 = read_card(storage, folder)
    try:
        data = storage.read(f"{folder}/{TENSORS}")
    except FileNotFoundError:
        raise ConfigError([f"{storage.path(folder)}/{TENSORS} is missing"]) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ConfigError(
            [f"{storage.path(folder)}/{TENSORS} is damaged (its sha256 differs from {CARD})"]
        )
    weights = safetensors.torch.load(data)
    module = build_generator(
        card.generator, conditioning=card.conditioning, sample=card.sample, seed=0
    )
    dtype = next(value.dtype for value in weights.values() if value.is_floating_point())
    module.to(dtype).load_state_dict(weights)
    return Snapshot(card, module.eval().requires_grad_(False), sha256)

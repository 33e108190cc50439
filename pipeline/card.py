"""A snapshot's card: what a generator's weights are, as JSON beside them; imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from gan.config import Conditioning, ConfigError, GeneratorConfig, Sample

if TYPE_CHECKING:  # a registered generator carries this file, but not the storage
    from pipeline.storage import Storage

SCHEMA = 1
SCORE = re.compile(
    r"score/(?:fid(_corrected|_error)?|(fd|kid|diversity)(_corrected|_error)?_.+)_\d+k?"
)
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
        """The score by 'fd', 'fd_corrected', 'kid', ..., whatever extractor and sample count it
        was taken with.
        """
        found = [v for name, v in self.scores.items() if measure_of(name) == metric]
        return found[0] if found else None


def measure_of(name: str) -> str | None:
    """The measure in the full name of a training-time score; None for another name.

    score/fd_corrected_digits_5k is of fd_corrected, score/fid_error_50k of fd_error.
    """
    found = SCORE.fullmatch(name)
    return (found[2] or "fd") + (found[1] or found[3] or "") if found else None


def read_card(storage: Storage, folder: str) -> tuple[SnapshotCard, str]:
    """The card of the snapshot below `folder`, and its weights' sha256. Raises ConfigError if it
    is none.
    """
    return card_of(part_of(storage, folder, CARD), storage.below(folder).uri)


def part_of(storage: Storage, folder: str, name: str) -> bytes:
    """A file of the snapshot below `folder`. Raises ConfigError where there is none."""
    try:
        return storage.read(f"{folder}/{name}")
    except FileNotFoundError:
        raise ConfigError(
            [f"there is no snapshot in {storage.below(folder).uri} (no {name})"]
        ) from None


def card_of(data: bytes, where: str) -> tuple[SnapshotCard, str]:
    """The card in a file's bytes, and its weights' sha256; `where` names its folder in errors.

    Raises ConfigError where it is damaged.
    """
    try:
        record = json.loads(data)
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
        card = TypeAdapter(SnapshotCard).validate_json(json.dumps(record["card"]))
        return card, str(record["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{where}/{CARD} is damaged: {error}"]) from None

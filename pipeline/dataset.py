"""What a prepared data set is: the index that names its shards; reads JSON only, so it answers at
once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gan.config import ConfigError, Sample
from pipeline.storage import open_storage

INDEX = "index.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the set."""

    file: str
    num_images: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """A prepared data set. `digest` depends on the images, their labels and their order alone."""

    uri: str
    num_images: int
    image_size_px: int
    channels: int
    classes: tuple[str, ...]  # names; empty where the images have no labels
    digest: str
    shards: tuple[Shard, ...]
    origin: dict[str, Any] = field(default_factory=dict)  # source, fit, filter, what was set aside

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 means no labels."""
        return len(self.classes)

    @property
    def sample(self) -> Sample:
        """What the players are told of the data."""
        size = self.image_size_px
        return Sample((self.channels, size, size), self.num_classes)


def open_shards(uri: str) -> ShardSet:
    """The set at `uri`, by its index alone. Raises ConfigError where there is none or it is
    damaged.
    """
    storage = open_storage(uri)
    try:
        index = json.loads(storage.read(INDEX))
    except FileNotFoundError:
        raise ConfigError(
            [
                f"there is no prepared data at {storage.uri} (no {INDEX}); "
                f"make it with `forger prepare`"
            ]
        ) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            [f"{storage.uri}/{INDEX} is not valid JSON ({error}); prepare it again"]
        ) from None
    if index.pop("schema", None) != SCHEMA:
        raise ConfigError([f"{storage.uri}/{INDEX} is not of schema {SCHEMA}; prepare it again"])
    index["shards"] = tuple(Shard(**shard) for shard in index["shards"])
    index["classes"] = tuple(index["classes"])
    return ShardSet(uri=storage.uri, **index)

"""What a prepared data set is: the index that names its shards; reads JSON only, so it answers at
once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from gan.config import ConfigError, Sample
from pipeline.storage import open_storage

INDEX = "index.json"
SCHEMA = 2
READABLE = (1, 2)  # 1 is raw pixels only, and says neither bytes nor classes of its shards

Encoding = Literal["raw", "png", "webp", "jpeg"]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the set."""

    file: str
    num_images: int
    sha256: str
    num_bytes: int | None = None  # of the file
    pixels_sha256: str | None = None  # of its decoded images, where they are encoded
    class_counts: tuple[int, ...] | None = None  # images of each class


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """A prepared data set. `digest` depends on the images, their labels and their order alone: not
    on how they are encoded, unless that changes pixels, and not on the sizes of shards.
    """

    uri: str
    num_images: int
    image_size_px: int
    channels: int
    classes: tuple[str, ...]  # names; empty where the images have no labels
    digest: str
    shards: tuple[Shard, ...]
    encoding: Encoding = "raw"
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image, as pixels lie in shards."""
        return self.image_size_px, self.image_size_px, self.channels

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's raw pixels."""
        return self.image_size_px**2 * self.channels


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
    except ValueError as error:  # no JSON, or no text at all
        raise ConfigError(
            [f"{storage.uri}/{INDEX} is not valid JSON ({error}); prepare it again"]
        ) from None
    schema = index.pop("schema", None) if isinstance(index, dict) else None
    if schema not in READABLE:
        raise ConfigError(
            [
                f"{storage.uri}/{INDEX} is of schema {schema}, not {SCHEMA} or older; "
                f"prepare it again or use a newer Forger"
            ]
        )
    try:
        index["shards"] = tuple(shard_of(shard) for shard in index["shards"])
        index["classes"] = tuple(index["classes"])
        return ShardSet(uri=storage.uri, **index)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            [f"{storage.uri}/{INDEX} is damaged ({error}); prepare it again"]
        ) from None


def shard_of(values: dict[str, Any]) -> Shard:
    """A shard as JSON holds it."""
    counts = values.get("class_counts")
    return replace(Shard(**values), class_counts=None if counts is None else tuple(counts))


def index_of(shards: ShardSet) -> bytes:
    """The index as it is published: JSON with one shard a line, however many there are."""
    head = {"schema": SCHEMA, **asdict(shards)}
    del head["uri"], head["shards"]
    lines = []
    for shard in shards.shards:
        known = {key: value for key, value in asdict(shard).items() if value is not None}
        lines.append("  " + json.dumps(known))
    text = json.dumps(head, indent=1).removesuffix("\n}")
    return (text + ',\n "shards": [\n' + ",\n".join(lines) + "\n ]\n}\n").encode()

"""Whether a data set can be played in the order that an experiment asks for."""

from __future__ import annotations

from gan.config import check
from pipeline.data_config import DataConfig
from pipeline.dataset import ShardSet
from pipeline.folder import Folder
from pipeline.storage import open_storage

BLOCK_BYTES = 64 * 2**20  # of pixels: what moves as one in a window shuffle, about one shard


def check_data(config: DataConfig, shards: ShardSet) -> None:
    """Raises ConfigError where this data cannot be played in this order."""
    weights, classes = config.class_weights, shards.num_classes
    balanced = config.balance == "classes"
    check(
        (
            not balanced or classes > 0,
            "data.balance = 'classes' needs labels, and the data has none",
        ),
        (
            not weights or len(weights) == classes,
            f"data.class_weights must have a number for each of the {classes} classes, "
            f"got {len(weights)}",
        ),
    )
    if balanced:
        shares, counts = shares_of(config, shards), _counts(shards)
        empty = [
            name
            for name, share, count in zip(shards.classes, shares, counts, strict=True)
            if share and count == 0
        ]
        check((not empty, f"data.class_weights must be 0 for classes without images: {empty}"))
    if shards.encoding != "raw" or not isinstance(open_storage(shards.uri), Folder):
        _check_cache(config, shards)


def shares_of(config: DataConfig, shards: ShardSet) -> tuple[int, ...]:
    """The share of each class where classes come in shares."""
    return config.class_weights or (1,) * shards.num_classes


def block_of(shards: ShardSet) -> int:
    """Images that move as one in a window shuffle: by their size, not by how they lie in shards,
    on which the order must not depend.
    """
    return max(1, BLOCK_BYTES // shards.image_bytes)


def _counts(shards: ShardSet) -> list[int]:
    """Images of each class, by the index; sets of schema 1 do not say, and pass for full."""
    said = [shard.class_counts for shard in shards.shards if shard.class_counts is not None]
    if len(said) < len(shards.shards):
        return [1] * shards.num_classes
    return [sum(counts) for counts in zip(*said, strict=True)]


def _check_cache(config: DataConfig, shards: ShardSet) -> None:
    """A cache smaller than what is in use at a time would fetch every shard again and again."""
    images, remedy = shards.num_images, "raise it, or set data.shuffle = 'window'"
    if config.shuffle == "window":  # this window, the next, and the blocks they begin in
        block = block_of(shards)
        images = min(images, 2 * config.lanes * ((config.window or block) + block))
        remedy = "raise it, or lower data.lanes"
    needed_gb = images * shards.image_bytes / 1e9
    check(
        (
            needed_gb <= config.cache_gb,
            f"data.cache_gb must hold what data.shuffle = {config.shuffle!r} has in use at a "
            f"time, {needed_gb:.3g} GB, got {config.cache_gb:g}; {remedy}",
        )
    )

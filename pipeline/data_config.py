"""Which images are played on, and in what order they come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gan.config import check

PLACES = ("shards", "cache_gb")  # where the images are: nothing that the weights depend on
CACHE_GB = 50.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which prepared data set is played on, and in what order."""

    shards: str = ""  # where `forger prepare` put it
    # 'full': any image anywhere in an epoch, so all of a remote set must fit into the cache.
    # 'window': shuffled shards, and images shuffled among those of a few shards at a time.
    shuffle: Literal["full", "window"] = "full"
    lanes: int = 32  # of 'window': how many places of the set a batch comes from
    window: int | None = None  # of 'window': images shuffled together; 64 MiB of them if left out
    balance: Literal["none", "classes"] = "none"  # 'classes': in shares, not as often as they are
    class_weights: tuple[int, ...] = ()  # of 'classes': shares of the classes; equal if left out
    flip: bool = False  # mirrors every second image, left to right
    cache_gb: float = CACHE_GB  # of this node's disk, for shards that are remote or encoded

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Settings that the weights do not depend on."""
        return PLACES if self.shuffle == "window" else (*PLACES, "lanes", "window")

    def __post_init__(self) -> None:
        windowed, weights = self.shuffle == "window", self.class_weights
        check(
            (1 <= self.lanes <= 4096, f"lanes must be between 1 and 4096, got {self.lanes}"),
            (
                windowed or self.window is None,
                f"window must be left out with shuffle = {self.shuffle!r}, got {self.window}",
            ),
            (
                self.window is None or self.window >= 1,
                f"window must be >= 1 (images), got {self.window}",
            ),
            (
                self.balance == "classes" or not weights,
                f"class_weights must be left out with balance = {self.balance!r}, "
                f"got {list(weights)}",
            ),
            (
                not weights or (min(weights) >= 0 and 0 < sum(weights) <= 10**6),
                f"class_weights must be whole numbers >= 0 that add up to between 1 and 10^6, "
                f"got {list(weights)}",
            ),
            (
                0 < self.cache_gb < math.inf,
                f"cache_gb must be > 0, got {self.cache_gb}",
            ),
        )

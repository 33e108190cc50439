"""The data sets that come with Forger."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gan.config import ConfigError
from pipeline.sources.arrays import open_idx
from pipeline.sources.source import Refused, Scratch, Source

EMBEDDED = ("digits", "faces")
FACES = ("short hair", "short hair, glasses", "long hair", "long hair, glasses")


@dataclass(frozen=True, slots=True)
class Faces:
    """The 2,048 pixel-art faces, 16 x 16, in four classes."""

    name: str = "embedded:faces"
    classes: tuple[str, ...] = FACES
    refused: tuple[Refused, ...] = ()
    stamp: str = "1"
    anywhere: bool = True

    def __len__(self) -> int:
        return len(_faces()["image"])

    def key(self, number: int) -> str:
        return f"#{number}"

    def label(self, number: int) -> int:
        return int(_faces()["label"][number])

    def load(self, number: int) -> np.ndarray:
        return _faces()["image"][number].reshape(16, 16, 3)


def open_embedded(name: str, scratch: Scratch) -> Source:
    """'digits' or 'faces'. Raises ConfigError for another name."""
    if name == "digits":
        images, labels = (
            _folder() / f"t10k-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")
        )
        return open_idx(images, labels, scratch, shown="embedded:digits", stamp="1")
    if name == "faces":
        return Faces()
    raise ConfigError([f"embedded data sets are {' and '.join(EMBEDDED)}, got {name!r}"])


@lru_cache(1)
def _faces() -> dict[str, Any]:
    from pipeline.arrow_files import read_table

    return read_table(_folder() / "pixfaces16_2048.parquet")


def _folder() -> Path:
    return Path(str(files("pipeline") / "embedded"))

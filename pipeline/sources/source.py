"""What every source of images is: images by number, each with a key, a label and its bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gan.config import ConfigError

MAX_FILE_BYTES = 256 * 2**20  # of one encoded image
SPARE_BYTES = 64 * 2**20  # left free on the disk that something is unpacked to
BLOCK_BYTES = 2**20


class BadImage(Exception):
    """An image that is set aside, and why."""


class Stream(Protocol):
    """Bytes that are read to their end."""

    def read(self, size: int, /) -> bytes:
        """At most `size` more bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Refused:
    """What a source holds but never reads, and why."""

    key: str
    reason: str


class Source(Protocol):
    """Images by number, in an order of the source's own.

    A source goes to other processes as it is: it holds paths and names, never open files or
    pixels.
    """

    @property
    def name(self) -> str:
        """Where the images come from, in words."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty where there are no labels."""
        ...

    @property
    def refused(self) -> tuple[Refused, ...]:
        """What is set aside without a look."""
        ...

    @property
    def stamp(self) -> str:
        """Differs where the images, their order or their labels do, as far as that can be told
        without reading them.
        """
        ...

    @property
    def anywhere(self) -> bool:
        """Whether other machines can read it too."""
        ...

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """The image's name: unique, and the same whenever and wherever the source is read."""
        ...

    def label(self, number: int) -> int:
        """Its class, or -1 where the source has no labels. Raises BadImage for a wrong one."""
        ...

    def load(self, number: int) -> bytes | np.ndarray:
        """An encoded image, or pixels (h, w) or (h, w, c). Raises BadImage or OSError."""
        ...


class Scratch:
    """A folder for what must be unpacked before it can be entered anywhere; made when used."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._count = 0

    def new(self, suffix: str, *, needed_bytes: int = 0) -> Path:
        """A path for a new file. Raises ConfigError where the disk has no room for it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._folder).free - SPARE_BYTES
        if needed_bytes > free:
            raise ConfigError(
                [
                    f"{self._folder} has {max(free, 0) / 1e9:.2f} GB free, unpacking the source "
                    f"needs {needed_bytes / 1e9:.2f} GB; prepare to a larger disk"
                ]
            )
        self._count += 1
        return self._folder / f"{self._count:04d}{suffix}"

    def unpack(self, stream: Stream, suffix: str, *, max_bytes: int, what: str) -> Path:
        """Copies a stream to a new file. Raises ConfigError where it is longer than `max_bytes`,
        or than the disk holds.
        """
        path, done = self.new(suffix), 0
        with open(path, "wb") as file:
            while block := stream.read(BLOCK_BYTES):
                done += len(block)
                if done > max_bytes:
                    raise ConfigError(
                        [
                            f"{what} unpacks to more than {max_bytes / 1e9:.2f} GB, "
                            f"which no images do; it is refused as a decompression bomb"
                        ]
                    )
                file.write(block)
        return path

    def clear(self) -> None:
        """Removes all of it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def stamp_of_files(paths: Sequence[Path]) -> list[str]:
    """Name, size and time of each file: what tells a changed file without reading it."""
    return [f"{p.name} {(s := p.stat()).st_size} {s.st_mtime_ns}" for p in paths]

"""Images that are files: in a folder, below an s3:// prefix, or on any other shelf."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.sources.labels import Labels
from pipeline.sources.source import MAX_FILE_BYTES, BadImage, Refused
from pipeline.storage import open_storage

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"}
SUFFIXES |= {".pgm", ".jfif"}


class Shelf(Protocol):
    """Where files lie, by name."""

    def read(self, name: str) -> bytes:
        """Raises BadImage or OSError."""
        ...


@dataclass(frozen=True, slots=True)
class FilesSource:
    """Images that are files on a shelf."""

    name: str
    shelf: Shelf
    names: tuple[str, ...]
    labels: Labels
    refused: tuple[Refused, ...] = ()
    stamp: str = ""
    anywhere: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    def __len__(self) -> int:
        return len(self.names)

    def key(self, number: int) -> str:
        return self.names[number]

    def label(self, number: int) -> int:
        if number in self.labels.wrong:
            raise BadImage(self.labels.wrong[number])
        return -1 if self.labels.numbers is None else int(self.labels.numbers[number])

    def load(self, number: int) -> bytes:
        return self.shelf.read(self.names[number])


@dataclass(frozen=True, slots=True)
class StorageShelf:
    """Files of a folder or of an s3:// prefix."""

    uri: str

    def read(self, name: str) -> bytes:
        if "://" not in self.uri:
            return _bounded(Path(self.uri, name))  # links that people put into it are followed
        with _storage(self.uri).local(name) as path:
            return _bounded(path)


def _bounded(path: Path) -> bytes:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise BadImage(f"{size} bytes are over {MAX_FILE_BYTES}")
        return file.read()


@lru_cache(8)
def _storage(uri: str):
    return open_storage(uri)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image; hidden ones are not."""
    last = name.rpartition("/")[2]
    hidden = last.startswith(".") or name.startswith("__MACOSX/")
    return not hidden and any(last.lower().endswith(suffix) for suffix in SUFFIXES)


def without_wrappers(names: Sequence[str]) -> list[str]:
    """Names without the folders that all of them share, as archives of one folder have them."""
    parts = [name.split("/")[:-1] for name in names]
    shared = 0
    while parts and all(len(p) > shared for p in parts):
        if len({p[shared] for p in parts}) > 1:
            break
        shared += 1
    return ["/".join(name.split("/")[shared:]) for name in names]


def stamp_of_names(uri: str, names: Sequence[str]) -> str:
    """A stamp of files by name, and by size and time where they lie in a folder."""
    marks = hashlib.sha256()
    root = None if "://" in uri else Path(uri)
    for name in names:
        marks.update(name.encode("utf-8", "surrogateescape"))
        if root is not None:
            found = (root / name).stat()
            marks.update(np.array([found.st_size, found.st_mtime_ns], "<i8").tobytes())
    return marks.hexdigest()

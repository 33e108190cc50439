"""Images that are one array: an IDX pair (MNIST's format), or NumPy's .npy and .npz."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from gan.config import ConfigError
from pipeline.sources.labels import LABEL_COLUMNS, NO_LABELS, Labels, labels_of_values
from pipeline.sources.source import BadImage, Refused, Scratch

DTYPES = ("uint8", "uint16", "bool")
MAX_ARRAY_BYTES = 2**44


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Rows of an array that lies in a file."""

    name: str
    path: str
    shape: tuple[int, ...]  # n h w, n h w c, or n c h w where the channels come first
    dtype: str
    offset: int
    order: Literal["C", "F"]
    channels_first: bool
    labels: Labels
    stamp: str = ""
    refused: tuple[Refused, ...] = ()
    anywhere: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    def __len__(self) -> int:
        return self.shape[0]

    def key(self, number: int) -> str:
        return f"#{number}"

    def label(self, number: int) -> int:
        if number in self.labels.wrong:
            raise BadImage(self.labels.wrong[number])
        return -1 if self.labels.numbers is None else int(self.labels.numbers[number])

    def load(self, number: int) -> np.ndarray:
        pixels = _mapped(self.path, self.dtype, self.offset, self.shape, self.order)[number]
        return pixels.transpose(1, 2, 0) if self.channels_first else pixels


@lru_cache(4)
def _mapped(path: str, dtype: str, offset: int, shape: tuple[int, ...], order: Literal["C", "F"]):
    return np.memmap(path, np.dtype(dtype), "r", offset, shape, order)


def close() -> None:
    """Lets go of the arrays that this process has open."""
    _mapped.cache_clear()


def open_idx(
    path: Path, labels_path: Path | None, scratch: Scratch, *, shown: str, stamp: str = ""
) -> ArraySource:
    """An IDX file of images and, where there is one, of their labels. Raises ConfigError."""
    plain, shape = _plain_idx(path, 3, scratch, shown)
    labels = NO_LABELS
    if labels_path is not None:
        found = _read_idx_labels(labels_path, scratch)
        if len(found) != shape[0]:
            raise ConfigError(
                [f"{shown} holds {shape[0]} images but {labels_path} {len(found)} labels"]
            )
        labels = labels_of_values(found.tolist(), what=labels_path.name)
    return ArraySource(shown, str(plain), shape, "uint8", 16, "C", False, labels, stamp)


def is_idx(head: bytes) -> bool:
    """Whether a file that begins so is an IDX file of images."""
    return head[:4] == bytes([0, 0, 8, 3])


def idx_labels_beside(path: Path) -> Path | None:
    """The labels that LeCun's naming puts beside the images."""
    pair = path.with_name(labels_name(path.name))
    return pair if pair != path and pair.is_file() else None


def labels_name(name: str) -> str:
    """What LeCun's naming calls the labels of images in a file of this name."""
    return name.replace("images-idx3", "labels-idx1").replace("images.idx3", "labels.idx1")


def _read_idx_labels(path: Path, scratch: Scratch) -> np.ndarray:
    plain, shape = _plain_idx(path, 1, scratch, str(path))
    return np.fromfile(plain, np.uint8, offset=8, count=shape[0])


def _plain_idx(
    path: Path, dimensions: int, scratch: Scratch, shown: str
) -> tuple[Path, tuple[int, ...]]:
    """The file, unpacked where it is gzip's, and the shape that its header promises: magic
    0 0 8 ndim, sizes as big-endian uint32, then bytes.
    """
    start = 4 + 4 * dimensions
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if packed else open
        with opener(path, "rb") as file:
            head = file.read(start)
        if head[:4] != bytes([0, 0, 8, dimensions]) or len(head) < start:
            raise ConfigError(
                [
                    f"{shown} is not an IDX file of bytes with {dimensions} dimensions, "
                    f"nor anything else that holds images"
                ]
            )
        shape = tuple(int(n) for n in np.frombuffer(head, ">u4", dimensions, 4))
        promised = math.prod(shape)
        if packed:
            with gzip.open(path, "rb") as stream:
                most = start + promised
                path = scratch.unpack(stream, ".idx", max_bytes=most, what=shown)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError([f"{shown} cannot be read: {error}"]) from None
    follow = path.stat().st_size - start
    if follow != promised:
        raise ConfigError(
            [f"{shown} is cut short: its header promises {promised} bytes, {follow} follow"]
        )
    if 0 in shape:
        raise ConfigError([f"{shown} holds no images: its shape is {shape}"])
    return path, shape


def open_npy(
    path: Path, labels_path: Path | None, scratch: Scratch, *, shown: str, stamp: str = ""
) -> ArraySource:
    """A .npy file of images and, where there is one, of their labels. Raises ConfigError."""
    labels = NO_LABELS if labels_path is None else _npy_labels(labels_path)
    return _of_npy(path, labels, shown, stamp)


def open_npz(
    path: Path,
    labels_path: Path | None,
    scratch: Scratch,
    *,
    shown: str,
    image_name: str | None = None,
    label_name: str | None = None,
    stamp: str = "",
) -> ArraySource:
    """A .npz file: the one array that can be images, and the one of as many labels.

    Raises ConfigError, which lists the arrays where the choice is not clear.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            heads = {
                member.filename.removesuffix(".npy"): _head(archive, member)
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
            shapes = ", ".join(f"{n} {d} {s}" for n, (s, _, d) in heads.items())
            if image_name is None:
                able = [n for n, (s, _, d) in heads.items() if len(s) in (3, 4) and d in DTYPES]
                if len(able) != 1:
                    raise ConfigError(
                        [f"{shown} holds {shapes}; name the array of images with --image-column"]
                    )
                image_name = able[0]
            if image_name not in heads:
                raise ConfigError([f"{shown} holds {shapes}, and no array {image_name!r}"])
            count = heads[image_name][0][0]
            if label_name is None and labels_path is None:
                fitting = [
                    n
                    for n, (s, _, _) in heads.items()
                    if n != image_name and s in ((count,), (count, 1))
                ]
                usual = [n for n in fitting if n in LABEL_COLUMNS]
                fitting = usual if len(usual) == 1 else fitting
                if len(fitting) > 1:
                    raise ConfigError(
                        [f"{shown} holds {shapes}; name the labels with --label-column"]
                    )
                label_name = fitting[0] if fitting else None
            elif label_name is not None and label_name not in heads:
                raise ConfigError([f"{shown} holds {shapes}, and no array {label_name!r}"])
            unpacked = _unpacked(archive, image_name, scratch, shown)
            labels = NO_LABELS
            if labels_path is not None:
                labels = _npy_labels(labels_path)
            elif label_name is not None:
                labels = _npy_labels(_unpacked(archive, label_name, scratch, shown))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ConfigError([f"{shown} is damaged: {error}"]) from None
    return _of_npy(unpacked, labels, shown, stamp)


def _head(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, str]:
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise ConfigError([f"{member.filename} is no array: {error}"]) from None
    return shape, fortran, str(dtype)


def _unpacked(archive: zipfile.ZipFile, name: str, scratch: Scratch, shown: str) -> Path:
    member = archive.getinfo(f"{name}.npy")
    scratch.new(".npy", needed_bytes=member.file_size)
    with archive.open(member) as stream:
        return scratch.unpack(stream, ".npy", max_bytes=MAX_ARRAY_BYTES, what=shown)


def _npy_labels(path: Path) -> Labels:
    values = _loaded(path, path.name)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise ConfigError(
            [
                f"labels must be one whole number or name an image, {path.name} holds "
                f"{values.dtype} {values.shape}"
            ]
        )
    return labels_of_values(values.tolist(), what=path.name)


def _loaded(path: Path, shown: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError([f"{shown} cannot be read as a NumPy array: {error}"]) from None


def _of_npy(path: Path, labels: Labels, shown: str, stamp: str) -> ArraySource:
    array = _loaded(path, shown)
    dtype, shape = str(array.dtype), array.shape
    last = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))
    first = not last and len(shape) == 4 and shape[1] in (1, 3, 4)
    if not last and not first:
        raise ConfigError(
            [
                f"{shown} must be images as (n, h, w), (n, h, w, c) or (n, c, h, w) of 1, 3 or 4 "
                f"channels, its shape is {shape}"
            ]
        )
    if dtype not in DTYPES:
        raise ConfigError(
            [
                f"{shown} must hold {', '.join(DTYPES)}, got {dtype}, whose range is not stated; "
                f"scale it to 0 to 255 and store it as uint8"
            ]
        )
    if 0 in shape:
        raise ConfigError([f"{shown} holds no images: its shape is {shape}"])
    if labels.numbers is not None and len(labels.numbers) != shape[0]:
        raise ConfigError(
            [f"{shown} holds {shape[0]} images but there are {len(labels.numbers)} labels"]
        )
    assert isinstance(array, np.memmap)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    offset = int(array.offset)
    return ArraySource(
        shown, str(path), shape, dtype, offset, "F" if fortran else "C", first, labels, stamp
    )

"""Stage: images from wherever they are to checksummed shards."""

from __future__ import annotations

import gzip
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from gan.config import ConfigError
from pipeline.arrow_files import read_table
from pipeline.dataset import ShardSet
from pipeline.shards import write_shards

log = logging.getLogger(__name__)

Fit = Literal["crop", "pad"]
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
Progress = Callable[[int, int], None]

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_PIXELS = 64 * 2**20  # of one source image; more is refused from its header
EMBEDDED = ("digits", "faces")
FACES = ("short hair", "short hair, glasses", "long hair", "long hair, glasses")


@dataclass(frozen=True, slots=True)
class Source:
    """Images by number: `load` gives the picture and its label, -1 where there is none."""

    name: str
    names: tuple[str, ...]
    load: Callable[[int], tuple[Image.Image, int]]
    classes: tuple[str, ...]


def prepare(
    source: str,
    destination: str,
    *,
    labels: str | None = None,
    size_px: int | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    filter: Filter = "lanczos",
    progress: Progress = lambda done, total: None,
) -> ShardSet:
    """Makes a shard set at `destination` from `source` and returns it.

    `source` is 'embedded:digits', 'embedded:faces', an IDX file of images (`labels` names its
    pair, or it is found beside it) or a folder whose sub-folders are classes. `fit` 'crop' cuts
    the middle square and scales it by `filter`; 'pad' scales nothing and puts a black border
    around. Without `size_px`, the first image's size counts; where no network plays that size, it
    is padded to the next one that is. Unreadable images are set aside, named in the index and in
    the log. Raises ConfigError where nothing can be prepared.
    """
    images = open_source(source, labels=labels)
    first = _first_readable(images)
    if size_px is None:
        size_px, fit = _default_size(first, fit)
    if channels is None:
        channels = 1 if first.mode in ("L", "1", "I;16", "I;16B", "I") else 3
    set_aside: list[dict[str, str]] = []
    origin = {
        "source": images.name,
        "fit": fit,
        "filter": filter,
        "set_aside": set_aside,
    }

    def converted() -> Iterator[tuple[np.ndarray, int]]:
        for number, name in enumerate(images.names):
            try:
                picture, label = images.load(number)
                yield _fitted(picture, size_px, channels, fit=fit, filter=filter), label
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                set_aside.append({"image": name, "reason": str(error)})
                log.warning("set aside %s: %s", name, error)
            progress(number + 1, len(images.names))

    return write_shards(destination, converted(), classes=images.classes, origin=origin)


def open_source(source: str, *, labels: str | None = None) -> Source:
    """Finds out what `source` is. Raises ConfigError where it is nothing that can be read."""
    kind, _, name = source.partition(":")
    if kind == "embedded":
        return _embedded(name)
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _idx(path, Path(labels) if labels else _idx_pair(path))
    raise ConfigError(
        [
            f"SRC must be a folder of images, an IDX file or one of "
            f"{', '.join('embedded:' + name for name in EMBEDDED)}, "
            f"got {source!r}, which does not exist"
        ]
    )


def _embedded(name: str) -> Source:
    folder = Path(str(files("pipeline") / "embedded"))
    if name == "digits":
        source = _idx(folder / "t10k-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz")
        return Source("embedded:digits", source.names, source.load, source.classes)
    if name == "faces":
        table = read_table(folder / "pixfaces16_2048.parquet")
        pixels = table["image"].reshape(-1, 16, 16, 3)

        def load(number: int) -> tuple[Image.Image, int]:
            return Image.fromarray(pixels[number]), table["label"][number]

        return Source("embedded:faces", _numbered(len(pixels)), load, FACES)
    raise ConfigError([f"embedded data sets are {' and '.join(EMBEDDED)}, got {name!r}"])


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"#{number}" for number in range(count))


def _idx(path: Path, labels_path: Path | None) -> Source:
    pixels = _read_idx(path, dimensions=3)
    labels = None
    if labels_path is not None:
        labels = _read_idx(labels_path, dimensions=1)
        if len(labels) != len(pixels):
            raise ConfigError(
                [f"{path} holds {len(pixels)} images but {labels_path} {len(labels)} labels"]
            )

    def load(number: int) -> tuple[Image.Image, int]:
        return Image.fromarray(pixels[number]), -1 if labels is None else int(labels[number])

    classes = () if labels is None else tuple(str(c) for c in range(int(labels.max()) + 1))
    return Source(str(path), _numbered(len(pixels)), load, classes)


def _idx_pair(path: Path) -> Path | None:
    """The labels that LeCun's naming puts beside the images."""
    pair = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    return pair if pair != path and pair.is_file() else None


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """An IDX array of bytes: magic 0 0 8 ndim, sizes as big-endian uint32, then the values."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from None
    start = 4 + 4 * dimensions
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) < start:
        raise ConfigError(
            [
                f"{path} is not an IDX file of bytes with {dimensions} dimensions, "
                f"nor a folder of images"
            ]
        )
    shape = np.frombuffer(data, ">u4", dimensions, 4).astype(int)
    if len(data) != start + shape.prod():
        raise ConfigError(
            [
                f"{path} is cut short: its header promises {shape.prod()} bytes, "
                f"{len(data) - start} follow"
            ]
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _folder(path: Path) -> Source:
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ConfigError(
            [f"{path} holds no images ({', '.join(sorted(SUFFIXES))}), neither do its sub-folders"]
        )
    tops = [p.relative_to(path).parts[0] if p.parent != path else None for p in found]
    if any(top is None for top in tops) and any(top is not None for top in tops):
        raise ConfigError(
            [
                f"{path} has images both at its top and in sub-folders; sub-folders are classes, "
                f"so move {next(p for p in found if p.parent == path).name} and the like into one"
            ]
        )
    classes = tuple(sorted({top for top in tops if top is not None}))

    def load(number: int) -> tuple[Image.Image, int]:
        top = tops[number]
        return _open_image(found[number]), -1 if top is None else classes.index(top)

    names = tuple(p.relative_to(path).as_posix() for p in found)
    return Source(str(path.resolve()), names, load, classes)


def _open_image(path: Path) -> Image.Image:
    """The image, decoded and upright. Raises OSError or ValueError where it is broken or too
    large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are over {MAX_PIXELS}")
            image.load()
            return ImageOps.exif_transpose(image)


def _first_readable(images: Source) -> Image.Image:
    reason = ""
    for number in range(len(images.names)):
        try:
            return images.load(number)[0]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = f"{images.names[number]}: {error}"
    raise ConfigError(
        [f"none of the {len(images.names)} images can be read; the last one, {reason}"]
    )


def _default_size(first: Image.Image, fit: Fit) -> tuple[int, Fit]:
    longest = max(first.size)
    playable = 8
    while playable < longest:
        playable *= 2
    return playable, "pad" if first.width != first.height or playable != longest else fit


def _fitted(
    picture: Image.Image, size_px: int, channels: int, *, fit: Fit, filter: Filter
) -> np.ndarray:
    """The picture as uint8 (size, size, channels). Raises ValueError where it does not fit."""
    if picture.mode.startswith("I"):  # 16 bits: scaled, because Pillow's own conversion clips
        wide = np.asarray(picture).astype(np.float64) / 65535 * 255
        picture = Image.fromarray(wide.round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert(
            "RGBA"
        )  # see-through parts are laid on white, as browsers show them
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if fit == "pad":
        if max(picture.size) > size_px:
            raise ValueError(f"{picture.width} x {picture.height} is larger than {size_px}")
        page = Image.new(picture.mode, (size_px, size_px))
        page.paste(picture, ((size_px - picture.width) // 2, (size_px - picture.height) // 2))
        picture = page
    elif picture.size != (size_px, size_px):
        picture = ImageOps.fit(picture, (size_px, size_px), method=FILTERS[filter])
    return np.asarray(picture).reshape(size_px, size_px, channels)

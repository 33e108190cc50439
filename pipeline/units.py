"""A unit of preparing: the images of one shard, loaded, fitted and written by whichever process.

What comes of it depends on the unit alone, so the set is the same whatever did the work.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pipeline.dataset import Encoding
from pipeline.fitting import Fitting, decode, fitted
from pipeline.parts import Part, write_part
from pipeline.sources.source import BadImage, Source
from pipeline.storage import Storage, open_storage

UNIT_BYTES = 32 * 2**20  # of pixels: what a process holds, a few times over
UNIT_IMAGES = 1024  # no fewer without need: a small set is a few shards
NUM_UNITS = 64  # at least so many, where that leaves them large enough, so that all cores work
TOLD_EVERY = 16  # images between two looks at the progress
COPY_KEY_BYTES = 16


class Interrupted(Exception):
    """The unit was left because its driver is ending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is common to all units; goes to other processes as it is."""

    source: Source
    fitting: Fitting
    encoding: Encoding
    plan: str  # a digest of all that the pixels, labels and order depend on
    dedupe: bool


@dataclass(frozen=True, slots=True)
class Unit:
    """Some images of the source, by number and in order, and the shard that they become."""

    uri: str
    number: int
    images: np.ndarray


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a unit: `part` is None where no image of it could be used.

    `note` is plain JSON: what the report is made of.
    """

    uri: str
    number: int
    part: Part | None
    note: dict[str, Any]


def images_per_unit(num_images: int, image_bytes: int) -> int:
    """How many images a unit has: by the set alone, never by who works on it."""
    wished = max(UNIT_IMAGES, -(-num_images // NUM_UNITS))
    return max(1, min(wished, UNIT_BYTES // image_bytes))


def do_unit(job: Job, unit: Unit, tick: Callable[[int], None] = lambda count: None) -> Done:
    """Fits the unit's images and writes their shard. `tick` is told of images that are through.

    Raises StorageError where the shard cannot be written.
    """
    size, channels = job.fitting.size_px, job.fitting.channels
    pixels = np.empty((len(unit.images), size, size, channels), np.uint8)
    labels, kept, keys = [], [], []
    set_aside: list[list[Any]] = []
    modes, sides = Counter(), Counter()
    enlarged, smallest, largest = 0, None, None
    for place, number in enumerate(unit.images.tolist()):
        if place % TOLD_EVERY == TOLD_EVERY - 1:
            tick(TOLD_EVERY)
        try:
            label = job.source.label(number)
            picture = decode(_loaded(job.source, number))
            one = fitted(picture, job.fitting, copy_key=job.dedupe)
        except BadImage as bad:
            set_aside.append([number, job.source.key(number), str(bad)])
            continue
        pixels[len(kept)] = one.image
        kept.append(number)
        labels.append(label)
        keys.append(one.copy_key)
        modes[one.mode] += 1
        shape = (one.width, one.height)
        sides[min(shape).bit_length() - 1] += 1
        smallest = min(smallest or shape, shape, key=_area)
        largest = max(largest or shape, shape, key=_area)
        enlarged += one.enlarged
    tick(len(unit.images) % TOLD_EVERY)
    note = {
        "set_aside": set_aside,
        "classes": dict(Counter(map(str, labels))),
        "modes": dict(modes),
        "shorter_side_log2": {str(side): count for side, count in sides.items()},
        "smallest": smallest,
        "largest": largest,
        "enlarged": enlarged,
    }
    if job.dedupe:
        note["kept"] = kept
        note["copy_keys"] = base64.b64encode(b"".join(keys)).decode()
    if not kept:
        return Done(unit.uri, unit.number, None, note)
    part = write_part(
        _storage(unit.uri),
        unit.number,
        pixels[: len(kept)],
        np.array(labels, np.int64),
        encoding=job.encoding,
        plan=job.plan,
        note=note,
    )
    return Done(unit.uri, unit.number, part, note)


def _loaded(source: Source, number: int) -> bytes | np.ndarray:
    try:
        return source.load(number)
    except OSError as error:  # this file's; storage that fails as a whole raises StorageError
        raise BadImage(f"cannot be read: {error.strerror or error}") from None


def _area(shape: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    return shape[0] * shape[1], shape


@lru_cache(4)
def _storage(uri: str) -> Storage:
    return open_storage(uri)

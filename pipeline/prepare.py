"""Stage: images from wherever they are to checksummed shards, and a report on them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gan.config import ConfigError
from gan.seeds import derive_seed
from pipeline.copies import without_copies
from pipeline.dataset import Encoding, ShardSet
from pipeline.first_look import fitting_of
from pipeline.fitting import Filter, Fit
from pipeline.folder import Folder
from pipeline.order import permute
from pipeline.parts import Part, publish_parts, sweep_parts
from pipeline.prepare_report import Report, write_report
from pipeline.sources.opening import Wanted, opened
from pipeline.sources.source import BadImage, Source
from pipeline.storage import Storage, open_storage
from pipeline.unfinished import already, finished, forget_shards, workshop
from pipeline.units import Done, Job, Unit, images_per_unit
from pipeline.workforce import each_unit

log = logging.getLogger(__name__)

PLAN = 1  # of the rules by which pixels and their order come about
HELD_OUT = "held-out"  # the set within the set
RAW_UP_TO_PX = 64
NAMED_IN_INDEX = 1000
NAMED_IN_ERROR = 20
HANDFUL = 10  # bad images that no share forbids

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Set:
    """One of the two sets that are made: where, and which images, in order."""

    uri: str
    images: np.ndarray


def prepare(
    source: str,
    destination: str,
    *,
    wanted: Wanted | None = None,
    size_px: int | None = None,
    channels: int | None = None,
    fit: Fit | None = None,
    filter: Filter = "lanczos",
    linear: bool = False,
    encoding: Encoding | None = None,
    held_out: float = 0.0,
    dedupe: bool = False,
    keep_order: bool | None = None,
    max_bad: str = "10%",
    processes: int | None = None,
    progress: Progress = lambda done, total: None,
) -> ShardSet:
    """Makes a shard set at `destination` from `source`, and returns it; goes on where a run of the
    same settings was killed.

    `source` is a folder, a zip or tar, an IDX or NumPy file, Parquet or Arrow, an s3:// prefix of
    any of these, 'embedded:digits' or 'embedded:faces'; `wanted` says which part of it. Pixels are
    made by the rules of `pipeline.fitting`. Without `size_px`, the size that images have counts;
    where a few pixels are missing to one that networks play, a black border fills them, and where
    some images show several sizes, nothing is prepared. Without `fit` it is 'crop'. Without
    `channels` it is 3 where any of some images has colour. Without `encoding` it is 'raw' up to
    64 px and 'webp' (lossless) above.

    The share `held_out` of the images, by a hash of their keys, becomes a set of its own at
    `destination`/held-out. `dedupe` keeps the first of images whose decoded pixels are equal.
    Images are shuffled, once and for all, unless `keep_order` (which embedded sets have by
    default): a window of neighbours is then as good as a random choice. What cannot be used is set
    aside and named in `destination`/report.json, with counts, and shown in report.html; over
    `max_bad` (a number, or a share as '10%') the run stops.

    The result does not depend on `processes`. Raises ConfigError where nothing can be prepared,
    where too much is bad, or where another set is at `destination`.
    """
    if not 0 <= held_out < 1:
        raise ConfigError([f"held-out must be a share from 0 to below 1, got {held_out}"])
    allowed = _allowed(max_bad)
    storage = open_storage(destination)
    if isinstance(storage, Folder) and Path(source).expanduser().resolve() in (
        storage.root,
        *storage.root.parents,
    ):
        raise ConfigError([f"DEST must lie outside SRC, got {destination!r} within {source!r}"])
    with (
        workshop(storage) as scratch,
        opened(source, wanted or Wanted(), scratch=scratch) as images,
    ):
        if not len(images):
            raise ConfigError([f"{images.name} holds no image that may be read, see its members"])
        fitting = fitting_of(
            images, size_px=size_px, channels=channels, fit=fit, filter=filter, linear=linear
        )
        encoding = encoding or ("raw" if fitting.size_px <= RAW_UP_TO_PX else "webp")
        if keep_order is None:
            keep_order = source.startswith("embedded:")
        settings = {
            "fitting": asdict(fitting),
            "encoding": encoding,
            "held_out": held_out,
            "dedupe": dedupe,
            "order": "kept" if keep_order else "shuffled",
        }
        plan = _plan(images, settings)
        if (whole := already(storage, plan)) is not None:
            return whole
        sets = _sets(images, storage, held_out, keep_order)
        for one in sets[1:]:
            already(open_storage(one.uri), plan)
        for one in sets:
            sweep_parts(open_storage(one.uri))
        job = Job(source=images, fitting=fitting, encoding=encoding, plan=plan, dedupe=dedupe)
        report = Report(source=images.name, settings=settings, classes=images.classes)
        report.refuse(images.refused)
        done = _do(
            job, sets, report, allowed(len(images) + len(images.refused)), processes, progress
        )
        if dedupe:
            done = without_copies(done, job, report)
        return _publish(done, sets, job, report, storage)


def _do(
    job: Job,
    sets: list[_Set],
    report: Report,
    allowed: float,
    processes: int | None,
    progress: Progress,
) -> list[Done]:
    """All units, those of an earlier run too, in order. Raises ConfigError where too many images
    are bad.
    """
    total = sum(len(one.images) for one in sets)
    through, done = 0, []

    def tick(count: int) -> None:
        nonlocal through
        through += count
        progress(through, total)

    def keep(one: Done) -> None:
        done.append(one)
        report.add(one)
        if len(report.set_aside) > allowed:
            raise ConfigError([_too_many(report, allowed, sets[0].uri)])

    todo = []
    for one in sets:
        known = finished(open_storage(one.uri), job.plan)
        shape = job.fitting.size_px**2 * job.fitting.channels
        step = images_per_unit(len(one.images), shape)
        for number, start in enumerate(range(0, len(one.images), step)):
            unit = Unit(one.uri, number, one.images[start : start + step])
            if (part := known.get(number)) is None:
                todo.append(unit)
                continue
            keep(Done(one.uri, number, part, part.note))
            tick(len(unit.images))
    if done:
        log.info("%d finished shards of an earlier run are kept", len(done))
    if len(report.set_aside) > allowed:
        raise ConfigError([_too_many(report, allowed, sets[0].uri)])
    for one in each_unit(job, todo, processes=processes, tick=tick):
        keep(one)
    order = {one.uri: place for place, one in enumerate(sets)}
    return sorted(done, key=lambda one: (order[one.uri], one.number))


def _publish(
    done: list[Done], sets: list[_Set], job: Job, report: Report, storage: Storage
) -> ShardSet:
    """The held-out set, the report and, last, the set itself."""
    results: dict[str, ShardSet] = {}
    origin = {
        "source": job.source.name,
        "fit": job.fitting.fit,
        "filter": job.fitting.filter + (" on linear values" if job.fitting.linear else ""),
        "order": report.settings["order"],
        "plan": job.plan,
        "set_aside": report.named(NAMED_IN_INDEX),
        "num_set_aside": len(report.set_aside),
        "num_copies": len(report.copies),
        "num_enlarged": report.enlarged,
    }
    parts: dict[str, list[Part]] = {one.uri: [] for one in sets}
    for one in done:
        if one.part is not None:
            parts[one.uri].append(one.part)
    for one in sets:
        if not parts[one.uri]:
            write_report(storage, report, None)
            bad = next(iter(report.named(1)), None)
            such = f", such as {bad['image']}: {bad['reason']}" if bad else ""
            raise ConfigError(
                [f"none of the {len(one.images)} images for {one.uri} can be used{such}"]
            )
    report.keep(parts)
    write_report(storage, report, (parts[sets[0].uri], job))
    apart = sum(p.shard.num_images for one in sets[1:] for p in parts[one.uri])
    origin["num_held_out"] = apart
    for one in reversed(sets):
        here = open_storage(one.uri)
        results[one.uri] = publish_parts(
            here, parts[one.uri], classes=job.source.classes, encoding=job.encoding, origin=origin
        )
        forget_shards(here)
    return results[sets[0].uri]


def _sets(images: Source, storage: Storage, held_out: float, keep_order: bool) -> list[_Set]:
    """Which images go where, in order. Raises ConfigError where a set would have none."""
    numbers = np.arange(len(images))
    if not held_out:
        return [_Set(storage.uri, _ordered(numbers, keep_order))]
    apart = np.array([_share_of(images.key(number)) < held_out for number in range(len(images))])
    if apart.all() or not apart.any():
        raise ConfigError(
            [
                f"held-out = {held_out} of {len(images)} images leaves "
                f"{int(apart.sum())} held out and {int((~apart).sum())} to train on"
            ]
        )
    return [
        _Set(storage.uri, _ordered(numbers[~apart], keep_order)),
        _Set(storage.below(HELD_OUT).uri, _ordered(numbers[apart], keep_order)),
    ]


def _share_of(key: str) -> float:
    """A number in [0, 1) by the key alone: an image stays on its side when others come or go."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _ordered(numbers: np.ndarray, keep_order: bool) -> np.ndarray:
    if keep_order:
        return numbers
    places = np.arange(len(numbers))
    return numbers[permute(places, size=len(numbers), key=derive_seed(PLAN, "ingest", 0))]


def _plan(images: Source, settings: dict[str, Any]) -> str:
    said = {
        "plan": PLAN,
        "images": len(images),
        "classes": images.classes,
        "stamp": images.stamp,
        "settings": settings,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for number in range(len(images)):
        try:
            label = images.label(number)
        except BadImage:
            label = -2
        digest.update(label.to_bytes(8, "big", signed=True))
    return digest.hexdigest()


def _allowed(max_bad: str) -> Callable[[int], float]:
    """How many images of so many may be bad; a share is never fewer than a handful, or one broken
    file would stop a small folder. Raises ConfigError for what is neither a number nor a share.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", max_bad.strip())
    if found is None or (not found[2] and "." in found[1]):
        raise ConfigError([f"max-bad must be a number or a share as '5%', got {max_bad!r}"])
    number = float(found[1])
    return lambda total: max(HANDFUL, number / 100 * total) if found[2] else number


def _too_many(report: Report, allowed: float, uri: str) -> str:
    write_report(open_storage(uri), report, None)
    named = [f"{one['image']}: {one['reason']}" for one in report.named(NAMED_IN_ERROR)]
    more = len(report.set_aside) - len(named)
    return (
        f"{len(report.set_aside)} images cannot be used, more than --max-bad allows "
        f"({int(allowed)}); mend or remove them, or allow more, and the same command goes on. "
        + "; ".join(named)
        + (f"; and {more} more, named in {uri}/report.json" if more else "")
    )

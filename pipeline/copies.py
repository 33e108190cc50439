"""Exact copies of images, found across all shards of the sets that are being made, and dropped."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.arrow_files import open_raw, read_encoded
from pipeline.codecs import decode_all
from pipeline.parts import Part, write_part
from pipeline.prepare_report import Report
from pipeline.storage import open_storage
from pipeline.units import COPY_KEY_BYTES, Done, Job


def without_copies(done: list[Done], job: Job, report: Report) -> list[Done]:
    """The units without images whose decoded pixels came before: in an earlier unit, or earlier in
    their own. Shards that held such are written again; the old ones stay for the caller to delete.

    Images held out come after those to train on, so that no copy of one is among the other.
    """
    places, keys = [], []
    for one in done:
        here = np.frombuffer(base64.b64decode(one.note["copy_keys"]), f"V{COPY_KEY_BYTES}")
        keys.append(here)
        places.append(np.array(one.note["kept"], np.int64))
    all_keys, number = np.concatenate(keys), np.concatenate(places)
    words = all_keys.view([("high", "<u8"), ("low", "<u8")])
    order = np.lexsort((np.arange(len(words)), words["low"], words["high"]))
    same = words[order][1:] == words[order][:-1]
    first = np.zeros(len(words), np.int64)
    first[order] = order[
        np.maximum.accumulate(np.where(np.append(True, ~same), np.arange(len(order)), 0))
    ]
    copy = first != np.arange(len(words))
    for at in np.flatnonzero(copy).tolist():
        report.copy(job.source.key(int(number[at])), job.source.key(int(number[first[at]])))
    starts = np.cumsum([0] + [len(here) for here in keys])
    result = []
    for which, one in enumerate(done):
        dropped = copy[starts[which] : starts[which + 1]]
        result.append(_without(one, dropped, job) if dropped.any() else one)
    return result


def _without(one: Done, dropped: np.ndarray, job: Job) -> Done:
    assert one.part is not None
    rows = np.flatnonzero(dropped).tolist()
    if one.note.get("dropped") == rows:  # an earlier run came so far
        return one
    assert "dropped" not in one.note, "the copies of one plan are always the same"
    note = {**one.note, "dropped": rows}
    if dropped.all():
        return replace(one, part=None)
    return replace(one, part=_rewritten(one.uri, one.part, ~dropped, job, note), note=note)


def _rewritten(uri: str, part: Part, kept: np.ndarray, job: Job, note: dict[str, Any]) -> Part:
    storage = open_storage(uri)
    encoded = None
    with storage.local(part.shard.file) as path:
        if job.encoding == "raw":
            shard = open_raw(path, part.shape)
            images, labels = shard.images[kept], shard.labels[kept]
        else:
            encoded, labels = read_encoded(path.read_bytes())
            encoded = [data for data, keep in zip(encoded, kept, strict=True) if keep]
            images, labels = decode_all(encoded, shape=part.shape), labels[kept]
    return write_part(
        storage,
        part.number,
        images,
        labels,
        encoding=job.encoding,
        encoded=encoded,
        plan=job.plan,
        note=note,
    )

"""Which images belong to a class: the first, second, ... of each, found without reading all labels
of a set first.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from pipeline.shards import ShardReader

MAX_SORTED = 1024  # shards whose labels are kept sorted


class ClassIndex:
    """The images of each class of a set, in the order in which they stand in it.

    Begins with the counts that the index of the set holds; labels are read a shard at a time, when
    one of its images is asked for. Sets of schema 1 hold no counts: their labels are all read.
    """

    def __init__(self, reader: ShardReader):
        self._reader, classes = reader, reader.shards.num_classes
        rows = [
            shard.class_counts
            if shard.class_counts is not None
            else _counts(reader.labels_of_shard(number), classes)
            for number, shard in enumerate(reader.shards.shards)
        ]
        self._before = np.zeros((len(rows) + 1, classes), np.int64)  # in the shards before each
        np.cumsum(np.array(rows, np.int64), axis=0, out=self._before[1:])
        self._first = np.cumsum([0] + [shard.num_images for shard in reader.shards.shards])
        self._sorted: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self.counts: list[int] = self._before[-1].tolist()

    def numbers(self, label: int, ranks: np.ndarray) -> np.ndarray:
        """Image numbers of the given images of a class, counted from 0 within it."""
        before = self._before[:, label]
        which = np.searchsorted(before, ranks, side="right") - 1
        self._reader.expect_shards(which)
        numbers = np.empty(len(ranks), np.int64)
        for shard in np.unique(which):
            here = which == shard
            labels, rows = self._sorted_labels(int(shard))
            start = np.searchsorted(labels, label)
            numbers[here] = self._first[shard] + rows[start + ranks[here] - before[shard]]
        return numbers

    def _sorted_labels(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """A shard's labels in order, and the rows that they stand at."""
        found = self._sorted.pop(shard, None)
        if found is None:
            labels = self._reader.labels_of_shard(shard)
            rows = np.argsort(labels, kind="stable")
            found = labels[rows].astype(np.int32), rows.astype(np.int32)
            while len(self._sorted) >= MAX_SORTED:
                self._sorted.popitem(last=False)
        self._sorted[shard] = found
        return found


def _counts(labels: np.ndarray, classes: int) -> tuple[int, ...]:
    return tuple(np.bincount(labels[labels >= 0], minlength=classes).tolist())

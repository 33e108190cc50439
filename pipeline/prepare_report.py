"""What became of the images: numbers, what was set aside and why, and a look at some of them."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pipeline.arrow_files import open_raw, read_encoded
from pipeline.codecs import decode_all
from pipeline.parts import Part
from pipeline.sources.source import Refused
from pipeline.storage import Storage, open_storage
from pipeline.units import Done, Job

JSON, PAGE, SHEET = "report.json", "report.html", "contact.png"
SHEET_ROWS, SHEET_COLUMNS = 8, 16
SHEET_PX = 1536  # at most, in width
LISTED = 500  # on the page; the JSON has all


@dataclass(slots=True)
class Report:
    """Fills as units come back; the order in which they come changes nothing."""

    source: str
    settings: dict[str, Any]
    classes: tuple[str, ...]
    set_aside: list[tuple[int, str, str]] = field(default_factory=list)  # number, key, reason
    copies: list[tuple[str, str]] = field(default_factory=list)  # key, key of the one kept
    counts: Counter[str] = field(default_factory=Counter)  # images, by set
    class_counts: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sides: Counter[str] = field(default_factory=Counter)  # log2 of shorter sides
    shapes: list[tuple[int, int]] = field(default_factory=list)  # smallest and largest of units
    enlarged: int = 0

    def refuse(self, refused: Iterable[Refused]) -> None:
        """Adds what the source never reads."""
        self.set_aside += [(-1, one.key, one.reason) for one in refused]

    def add(self, done: Done) -> None:
        """Adds a unit's images."""
        note = done.note
        self.set_aside += [(number, key, reason) for number, key, reason in note["set_aside"]]
        self.counts[done.uri] += sum(note["classes"].values())
        self.class_counts.update(note["classes"])
        self.modes.update(note["modes"])
        self.sides.update(note["shorter_side_log2"])
        self.shapes += [tuple(s) for s in (note["smallest"], note["largest"]) if s]
        self.enlarged += note["enlarged"]

    def keep(self, parts: Mapping[str, Sequence[Part]]) -> None:
        """Says what the sets, by their place, hold in the end, without copies."""
        self.counts.clear()
        self.class_counts.clear()
        for uri, ones in parts.items():
            for part in ones:
                self.counts[uri] += part.shard.num_images
                for number, count in enumerate(part.shard.class_counts or ()):
                    self.class_counts[str(number)] += count

    def copy(self, key: str, kept: str) -> None:
        """Adds an image that was dropped as a copy."""
        self.copies.append((key, kept))

    def named(self, most: int | None = None) -> list[dict[str, str]]:
        """What was set aside, by name, in the source's order."""
        found = sorted(self.set_aside)[:most]
        return [{"image": key, "reason": reason} for _, key, reason in found]

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        by_area = sorted(self.shapes, key=lambda s: (s[0] * s[1], s))
        reasons = Counter(reason for _, _, reason in self.set_aside)
        return {
            "source": self.source,
            "settings": self.settings,
            "num_images": sum(self.counts.values()),
            "sets": dict(self.counts),
            "num_set_aside": len(self.set_aside),
            "num_copies": len(self.copies),
            "num_enlarged": self.enlarged,
            "classes": {
                name: self.class_counts[str(number)] for number, name in enumerate(self.classes)
            },
            "modes": dict(sorted(self.modes.items())),
            "shorter_side_px": {
                f"{2 ** int(side)} to {2 ** (int(side) + 1) - 1}": self.sides[side]
                for side in sorted(self.sides, key=int)
            },
            "smallest_px": by_area[0] if by_area else None,
            "largest_px": by_area[-1] if by_area else None,
            "reasons": dict(reasons.most_common()),
            "set_aside": self.named(),
            "copies": [{"image": key, "copy_of": kept} for key, kept in sorted(self.copies)],
        }


def write_report(
    storage: Storage, report: Report, shown: tuple[Sequence[Part | None], Job] | None
) -> None:
    """Publishes report.json, and, where there are shards to be `shown`, the contact sheet and one
    page of everything.
    """
    facts = report.as_json()
    storage.write(JSON, json.dumps(facts, indent=1).encode())
    if shown is None:
        return
    sheet = contact_sheet(storage.uri, [p for p in shown[0] if p], shown[1])
    storage.write(SHEET, sheet)
    environment = Environment(
        loader=PackageLoader("pipeline", "pages"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("prepared.html").render(
        facts=facts,
        sheet=base64.b64encode(sheet).decode(),
        listed=LISTED,
        widest=max([*facts["shorter_side_px"].values(), 1]),
        most=max([*facts["classes"].values(), 1]),
    )
    storage.write(PAGE, page.encode())


def contact_sheet(uri: str, parts: Sequence[Part], job: Job) -> bytes:
    """A PNG of the first images of the set: one row a class where there are few, rows as they come
    where there are many or none.
    """
    num_classes = len(job.source.classes)
    by_class = 1 < num_classes <= SHEET_COLUMNS
    rows: list[list[np.ndarray]] = [[] for _ in range(num_classes if by_class else SHEET_ROWS)]
    for part in parts[:4]:
        images, labels = _pixels(uri, part, job)
        for image, label in zip(images, labels, strict=True):
            row = rows[label] if by_class else next((r for r in rows if not _full(r)), None)
            if row is None:
                break
            if not _full(row):
                row.append(np.array(image))
        if all(_full(row) for row in rows):
            break
    rows = [row for row in rows if row]
    size, gap = job.fitting.size_px, 2
    step, width = size + gap, max(len(row) for row in rows)
    sheet = Image.new("RGB", (width * step + gap, len(rows) * step + gap), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            pixels = image[:, :, 0] if image.shape[2] == 1 else image
            sheet.paste(Image.fromarray(pixels), (gap + x * step, gap + y * step))
    if sheet.width > SHEET_PX:
        height = max(1, round(sheet.height * SHEET_PX / sheet.width))
        sheet = sheet.resize((SHEET_PX, height), Image.Resampling.BOX)
    file = BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _full(row: list[np.ndarray]) -> bool:
    return len(row) >= SHEET_COLUMNS


def _pixels(
    uri: str, part: Part, job: Job
) -> tuple[Sequence[np.ndarray] | np.ndarray, np.ndarray]:
    with open_storage(uri).local(part.shard.file) as path:
        if job.encoding == "raw":
            shard = open_raw(path, part.shape)
            return shard.images, shard.labels
        encoded, labels = read_encoded(path.read_bytes())
        first = encoded[: SHEET_ROWS * SHEET_COLUMNS * 4]
        return decode_all(first, shape=part.shape), labels[: len(first)]

"""How a score was taken: everything that two scores must share before they may be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from gan.features import Extractor
from pipeline.dataset import ShardSet

SCHEMA = 1
BLOCK = 100  # images in one forward pass; fixed, so that a score does not depend on the workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The measure, the reference and the draws behind a score: equal records may be compared."""

    schema: int = SCHEMA
    data_digest: str  # of the real images
    training_digest: str | None = None  # of what may have been copied, where that is another set
    num_reference: int
    data_resize: str  # how they came to their size: fit and filter of `forger prepare`
    extractor: str
    extractor_sha256: str
    extractor_resize: str  # what it does to an image before it looks
    num_images: int
    truncation: float = 1.0
    weights: Literal["ema"] = "ema"
    labels: Literal["none", "data", "drawn"]  # none; those of the reals in turn; drawn from them
    latents: str  # stream and seed
    block: int = BLOCK  # images in a forward pass: another number rounds otherwise

    @property
    def sha256(self) -> str:
        """Names the record: scores under another one are not comparable."""
        record = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()

    @property
    def reference_sha256(self) -> str:
        """Names the real side alone: what features of the real images depend on."""
        parts = (self.schema, self.data_digest, self.extractor_sha256, self.extractor_resize)
        return hashlib.sha256(json.dumps([*parts, self.block]).encode()).hexdigest()


def protocol_for(
    shards: ShardSet,
    extractor: Extractor,
    *,
    num_images: int,
    labels: Literal["none", "data", "drawn"],
    latents: str,
    training_digest: str | None = None,
) -> Protocol:
    """The record of judging `num_images` images of G_ema against all of `shards`."""
    origin: dict[str, Any] = shards.origin
    return Protocol(
        data_digest=shards.digest,
        training_digest=training_digest,
        num_reference=shards.num_images,
        data_resize=f"{origin.get('fit', 'as given')} {origin.get('filter', '')}".strip(),
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        extractor_resize=extractor.resize,
        num_images=num_images,
        labels=labels,
        latents=latents,
    )


def count_label(count: int) -> str:
    """5000 as '5k', 2500 as '2500': how sample counts appear in metric names."""
    return f"{count // 1000}k" if count >= 1000 and count % 1000 == 0 else str(count)


def metric_name(metric: str, extractor: Extractor, *, images: int) -> str:
    """The full name of a score, which says extractor and sample count: score/fd_digits_5k.

    Only the true Inception network makes a Frechet distance an FID: score/fid_50k.
    """
    if extractor.fid and metric.startswith("fd"):
        return f"score/{metric.replace('fd', 'fid', 1)}_{count_label(images)}"
    return f"score/{metric}_{extractor.name}_{count_label(images)}"

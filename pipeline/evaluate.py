"""Stage: a generator against real images by every measure, with errors, pictures and a page."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backend import Backend
from pipeline.evidence import judge
from pipeline.experiment import ClusterConfig
from pipeline.extraction import extract, forgeries, forget
from pipeline.ground import Ground, Told
from pipeline.hands import hands
from pipeline.measures import Measures
from pipeline.page import Page, render
from pipeline.protocol import Protocol, metric_name
from pipeline.shown import class_table, forged_grid, measure_table, neighbour_pictures
from pipeline.snapshot import Snapshot
from pipeline.storage import open_storage
from pipeline.tracking import track_evaluation

STREAM = "judge"  # of latents and labels; no run, no search and no gate draws from it
SEED = 0  # the same for every generator, so that scores of one protocol differ by it alone
EVALUATIONS = "_evaluations"  # below the storage; no run can have this name
SHOWN = ("fd", "fd_plug_in", "kid", "precision", "recall", "density", "coverage", "diversity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was found of a generator, and where it lies."""

    model: str
    sha256: str
    nimg: int
    protocol: Protocol
    measures: Measures
    scores: dict[str, float]  # by full name: score/fd_digits_10k, and with _se its error
    folder: str
    url: str | None  # in MLflow

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self) | {"protocol_sha256": self.protocol.sha256}


def evaluate(
    snapshot: Snapshot,
    ground: Ground,
    *,
    model: str,
    images: int,
    cluster: ClusterConfig,
    output: str | None = None,
    where: Backend | None = None,
    told: Told = lambda what, done, total: None,
) -> Evaluation:
    """Judges `images` forged images and writes evaluation.json, pictures and a page to `output`.

    They go to MLflow too where it is given. `model` is what people call the generator. Raises
    ConfigError where it cannot be judged on this ground.
    """
    ground.check(snapshot, who="MODEL")
    look = forgeries(
        snapshot, ground.eye, ground.real, stream=STREAM, seed=SEED, storage=ground.storage
    )
    with hands(cluster) as each:
        reference = ground.reference(each, told)
        forged = extract(
            look, images=images, each=each, progress=lambda done, n: told("forged images", done, n)
        )
    evidence = judge(forged.vectors, forged.labels, reference)
    protocol = ground.protocol(snapshot, num_images=images, latents=f"{STREAM}/{SEED}")
    default = f"{ground.storage}/{EVALUATIONS}/{snapshot.sha256[:12]}-{protocol.sha256[:12]}"
    folder = open_storage(output or default)
    found = Evaluation(
        model=model,
        sha256=snapshot.sha256,
        nimg=snapshot.card.nimg,
        protocol=protocol,
        measures=evidence.measures,
        scores=scores_of(evidence.measures, protocol, ground),
        folder=folder.uri,
        url=None,
    )
    grid = forged_grid(look)
    neighbours = neighbour_pictures(look, forged.vectors, evidence, reference, ground)
    folder.write("evaluation.json", json.dumps(found.record(), indent=1).encode())
    folder.write("grid.png", grid.png)
    for name, picture in zip(("suspicious", "ordinary"), neighbours, strict=True):
        folder.write(f"neighbours-{name}.png", picture.png)
    page = Page(
        title=f"{model} judged",
        summary=[f"{images} forged images against {protocol.num_reference} real ones."],
        grids=[grid],
        tables=[measure_table({model: evidence.measures}), *class_table({model: evidence.measures},
                ground.real.classes)],
        neighbours=neighbours,
        record=record_rows(found),
    )  # fmt: skip
    folder.write("evaluation.html", render(page).encode())
    forget(look)
    if where is None:
        return found
    trained_by = snapshot.card.lineage["experiment"]
    with tempfile.TemporaryDirectory() as copy:
        for name in folder.names():
            path = Path(copy, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(folder.read(name))
        url = track_evaluation(
            where,
            trained_by["tracking"]["experiment"] or trained_by["name"],
            name=f"evaluate {model}",
            tags={"forger.protocol": protocol.sha256, "forger.sha256": snapshot.sha256},
            metrics=found.scores,
            nimg=snapshot.card.nimg,
            folder=Path(copy),
        )
    return dataclasses.replace(found, url=url)


def scores_of(measures: Measures, protocol: Protocol, ground: Ground) -> dict[str, float]:
    """Every measure by its full name, and its standard error by that name and _se."""
    extractor = ground.eye.open(ground.real.sample.shape)
    found: dict[str, float] = {}
    for name in SHOWN:
        measure = getattr(measures, name)
        if measure is not None:
            full = metric_name(name, extractor, images=protocol.num_images)
            found[full] = measure.value
            found[f"{full}_se"] = measure.standard_error
    copies = metric_name("memorized", extractor, images=protocol.num_images)
    found[copies] = measures.memorization.rate
    return found


def record_rows(found: Evaluation) -> list[tuple[str, str]]:
    """Where the figures come from, for the foot of a page."""
    protocol = dataclasses.asdict(found.protocol)
    rows = [("weights", found.sha256), ("protocol", found.protocol.sha256)]
    return rows + [(f"protocol: {key}", str(value)) for key, value in protocol.items()]

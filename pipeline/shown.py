"""Measures, checks and images as a page shows them: tables, intervals, grids, neighbours."""

from __future__ import annotations

from torch import Tensor

from gan.neighbours import nearest
from pipeline.checks import Check
from pipeline.evidence import Evidence, Reference
from pipeline.extraction import Look, images_at, reals
from pipeline.ground import Ground, order_of
from pipeline.measures import Measure, Measures
from pipeline.page import CheckRow, Picture, Table, bar
from pipeline.pictures import grid_png, neighbours_png

NUM_SHOWN = 64
NUM_NEIGHBOURS = 10  # forged images, each above its nearest training images
NUM_NEAREST = 2
ROWS = (
    ("fd", "Fréchet distance, bias-corrected"),
    ("fd_plug_in", "Fréchet distance, plug-in"),
    ("kid", "KID"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("density", "density"),
    ("coverage", "coverage"),
    ("diversity", "diversity (spread over the reals')"),
)


def measure_table(found: dict[str, Measures]) -> Table:
    """Every measure of each generator, by its name, with the standard error."""
    rows = [
        [shown, *(value_and_error(getattr(measures, name)) for measures in found.values())]
        for name, shown in ROWS
    ]
    memory = [m.memorization for m in found.values()]
    rows.append(["nearer to a training image than chance",
                 *(f"{m.rate:.2%} ({m.calibrated:.2%} expected)" for m in memory)])  # fmt: skip
    return Table(
        "Measures",
        ["", *found],
        rows,
        note="± is one standard error; plug-in distances are biased upwards, and less for "
        "generators of little spread.",
    )


def class_table(found: dict[str, Measures], names: tuple[str, ...]) -> list[Table]:
    """KID and coverage class by class; no table where there are no classes."""
    first = next(iter(found.values()))
    if not first.classes:
        return []
    head = ["class", "real images"]
    for who in found:
        head += [f"{who}: Fréchet", "KID", "coverage"]
    rows = []
    for number, one in enumerate(first.classes):
        label = names[one.label] if one.label < len(names) else str(one.label)
        row = [label, str(one.num_reference)]
        for measures in found.values():
            mine = measures.classes[number]
            row += [value_and_error(m) for m in (mine.fd, mine.kid, mine.coverage)]
        rows.append(row)
    return [Table("Classes", head, rows, note="coverage of a class's real images by any fakes.")]


def value_and_error(measure: Measure | None) -> str:
    """1.28 ± 0.14; a dash where it was not measured."""
    if measure is None:
        return "-"
    return f"{measure.value:.4g} ± {measure.standard_error:.2g}"


def check_rows(checks: tuple[Check, ...]) -> list[CheckRow]:
    """Checks with their intervals drawn."""
    states = {True: "passed", False: "failed", None: "open"}
    return [
        CheckRow(c.name, states[c.passed], c.sentence, bar(c.value, c.low, c.high, c.limit))
        for c in checks
    ]


def forged_grid(look: Look, *, caption: str = "forged images") -> Picture:
    """The first images of a look, as they were judged."""
    return Picture(caption, grid_png(images_at(look, range(NUM_SHOWN))))


def neighbour_pictures(
    look: Look, vectors: Tensor, evidence: Evidence, reference: Reference, ground: Ground
) -> list[Picture]:
    """The forged images nearest to being copies, and ordinary ones, above their nearest training
    images. `vectors` (n, d) are the features of the forged images.
    """
    suspicious = evidence.ratios.argsort()[:NUM_NEIGHBOURS].tolist()
    ordinary = [n for n in range(2 * NUM_NEIGHBOURS) if n not in suspicious][:NUM_NEIGHBOURS]
    training = reals(ground.eye, ground.copied, storage=ground.storage)
    numbers = order_of(ground.copied)
    pictures = []
    for caption, chosen in (("the most suspicious", suspicious), ("the first ones", ordinary)):
        near = nearest(vectors[chosen], reference.training.features, count=NUM_NEAREST).index
        where = numbers[reference.training.number[near].numpy()]
        below = images_at(training, where.flatten().tolist())
        shape = (len(chosen), NUM_NEAREST, *below.shape[1:])
        png = neighbours_png(images_at(look, chosen), below.view(shape))
        pictures.append(Picture(caption, png))
    return pictures

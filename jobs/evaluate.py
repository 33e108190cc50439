"""forger evaluate: a generator against a data set, with error bars and pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from jobs.options import Progress, judging

if TYPE_CHECKING:
    pass


@click.command("evaluate")
@click.argument("model", metavar="MODEL")
@click.option(
    "--images",
    type=click.IntRange(100),
    default=10_000,
    show_default=True,
    help="How many are forged and judged.",
)
@judging
@click.option("--output", metavar="DIR", help="Where table, pictures and page go.")
@click.option("--track/--no-track", default=True, help="Record it in MLflow.  [default: track]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model, images, against, held_out, extractor, weights, weights_sha256, workers, storage, output,
    track, as_json,
) -> None:  # fmt: skip
    """Judge MODEL by every measure, each with its error.

    MODEL is models:/NAME@champion or models:/NAME/VERSION in the registry, a run (its best
    snapshot), or a snapshot's folder. The names of the scores say the extractor and the number of
    images; scores of another protocol are not comparable. Features of real images are kept below
    the storage, so that the next evaluation is faster; a killed one goes on where it was.
    """
    from pipeline.evaluate import evaluate
    from pipeline.find import find_generator
    from pipeline.ground import ground_for

    snapshot = find_generator(model, storage=storage)
    ground = ground_for(
        snapshot, against=against, held_out=held_out, extractor=extractor, weights=weights,
        weights_sha256=weights_sha256, storage=storage,
    )  # fmt: skip
    with Progress() as told:
        found = evaluate(
            snapshot, ground, model=model, images=images, workers=workers, output=output,
            track=track, told=told,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found.record()))
    else:
        _print(found)

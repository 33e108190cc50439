"""forger evaluate: a generator against a data set, with error bars and pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from jobs.options import Progress, images_option, judging

if TYPE_CHECKING:
    from pipeline.evaluate import Evaluation


@click.command("evaluate")
@click.argument("model", metavar="MODEL")
@images_option("How many are forged and judged.")
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
    from pipeline.backend import backend
    from pipeline.evaluate import evaluate
    from pipeline.experiment import ClusterConfig
    from pipeline.find import find_generator
    from pipeline.ground import ground_for

    snapshot = find_generator(model, storage=storage)
    ground = ground_for(
        snapshot, against=against, held_out=held_out, extractor=extractor, weights=weights,
        weights_sha256=weights_sha256, storage=storage,
    )  # fmt: skip
    with Progress() as told:
        found = evaluate(
            snapshot, ground, model=model, images=images, output=output, told=told,
            cluster=ClusterConfig(workers=workers, storage=storage),
            where=backend(storage) if track else None,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(found.record()))
    else:
        _print(found)


def _print(found: Evaluation) -> None:
    protocol, memory = found.protocol, found.measures.memorization
    for name, value in found.scores.items():
        if not name.endswith("_se"):
            error = found.scores.get(f"{name}_se")
            click.echo(f"{name:<36}{value:>12.6g}" + (f" +- {error:.2g}" if error else ""))
    click.echo(
        f"{'nearer to a training image':<36}{memory.rate:>12.2%} "
        f"[{memory.low:.2%}, {memory.high:.2%}], {memory.calibrated:.2%} by chance"
    )
    for one in found.measures.classes:
        kid = f"kid {one.kid.value:.4g} +- {one.kid.standard_error:.2g}" if one.kid else ""
        click.echo(
            f"class {one.label:<4} {one.num_images:>6} of {one.num_reference:>6} real ones  "
            f"coverage {one.coverage.value:.3f}  {kid}".rstrip()
        )
    click.echo(
        f"\n{protocol.num_images} images against {protocol.num_reference} real ones "
        f"({protocol.data_digest[:12]}); extractor {protocol.extractor} "
        f"{protocol.extractor_sha256[:12]}; protocol {protocol.sha256[:12]}"
    )
    click.echo(f"look     {found.folder}/evaluation.html")
    if found.url is not None:
        click.echo(f"tracked  {found.url}")

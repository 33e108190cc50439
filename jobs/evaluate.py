"""forger evaluate: a generator against a data set."""

from __future__ import annotations

import json
import sys

import click


@click.command("evaluate")
@click.argument("model", metavar="MODEL")
@click.option(
    "--against", metavar="DATA", help="Prepared data; what MODEL was trained on, where left out."
)
@click.option("--images", type=click.IntRange(2), help="As in training, where left out.")
@click.option("--extractor", help="As in training, where left out.")
@click.option(
    "--storage",
    default="runs",
    show_default=True,
    help="Where the runs and the local registry are.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model, against, images, extractor, storage, as_json) -> None:
    """Judge MODEL: Frechet distance and KID on an extractor's features.

    MODEL as in `forger sample`. The names of the scores say the extractor and the number of
    images.
    """
    from dataclasses import asdict

    from gan.config import ConfigError
    from pipeline.dataset import open_shards
    from pipeline.experiment_file import experiment_from_dict
    from pipeline.extractors import load_extractor
    from pipeline.find import find_generator
    from pipeline.judge import Judge
    from pipeline.shards import verify_shards

    snapshot = find_generator(model, storage=storage)
    trained_by = experiment_from_dict(snapshot.card.lineage["experiment"])
    shards = open_shards(against or trained_by.data.shards)
    verify_shards(shards)
    if (known := snapshot.card.sample.shape) != shards.sample.shape:
        raise ConfigError(
            [f"MODEL draws {known}, the data at {shards.uri} has {shards.sample.shape}"]
        )
    if snapshot.card.classes and snapshot.card.classes != shards.classes:
        raise ConfigError(
            [f"MODEL knows the classes {snapshot.card.classes}, the data has {shards.classes}"]
        )
    judge = Judge(
        load_extractor(extractor or trained_by.evaluate.extractor, shards.sample.shape), shards
    )
    with click.progressbar(length=1, label="judging", width=40, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        score = judge.score(
            snapshot.module,
            latent_dim=snapshot.card.generator.latent_dim,
            conditioning=snapshot.card.conditioning,
            images=images or trained_by.evaluate.images,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(asdict(score)))
        return
    for name, value in score.metrics.items():
        click.echo(f"{name:<28}{value:.6g}")
    click.echo(
        f"{'images':<28}{score.protocol.num_images}, against {score.protocol.num_reference} real ones"
    )
    click.echo(f"{'reference':<28}{score.protocol.data_digest[:12]} ({shards.uri})")
    click.echo(
        f"{'extractor':<28}{score.protocol.extractor} {score.protocol.extractor_sha256[:12]}"
    )

"""forger extractor: feature extractors for data of one's own."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("extractor")
def command() -> None:
    """Train a feature extractor on a data set of your own."""


@command.command("train")
@click.argument("data", metavar="DATA")
@click.argument("destination", metavar="DEST")
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def train(data, destination, epochs, seed) -> None:
    """Train a small classifier on DATA's labels; its last hidden layer becomes an extractor in
    DEST.

    Name DEST as evaluate.extractor. A fifth of the images is held out, and the accuracy on it
    stored.
    """
    from pipeline.dataset import open_shards
    from pipeline.extractors import train_extractor
    from pipeline.shards import verify_shards

    shards = open_shards(data)
    verify_shards(shards)
    name = Path(destination).name.removeprefix("extractor-")
    with click.progressbar(length=1, label="training", width=40) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        card = train_extractor(
            shards, destination, name=name, epochs=epochs, seed=seed, progress=progress
        )
    click.echo(
        f"{card.held_out_accuracy:.2%} of {card.num_held_out} held-out images are classed right; "
        f"evaluate.extractor = {destination!r}"
    )

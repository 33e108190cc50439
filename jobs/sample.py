"""forger sample: images from a generator."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.options import storage_option


@click.command("sample")
@click.argument("model", metavar="MODEL")
@click.option("-n", "--num-images", type=click.IntRange(1, 100_000), default=64, show_default=True)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the first image; the next ones count up.",
)
@click.option("--label", type=int, help="Class of all images, where the generator knows classes.")
@click.option(
    "--truncation",
    type=float,
    default=1.0,
    show_default=True,
    help="1 all variety, 0 the mean latent.",
)
@click.option(
    "--columns", type=click.IntRange(1), help="Of the grid; about square where left out."
)
@storage_option
@click.option("-o", "--output", type=click.Path(), default="grid.png", show_default=True)
def command(model, num_images, seed, label, truncation, columns, storage, output) -> None:
    """Draw images from MODEL into one PNG.

    MODEL is models:/NAME@champion, models:/NAME-candidates@candidate or models:/NAME/VERSION in
    the registry, a run (its best snapshot), or a snapshot's folder. A seed gives the same image on
    every machine, whatever else is drawn.
    """
    from gan.config import ConfigError

    if Path(output).suffix.lower() != ".png":
        raise ConfigError([f"--output must end in .png, got {output!r}"])
    from pipeline.find import find_generator
    from pipeline.pictures import grid_png

    snapshot = find_generator(model, storage=storage)
    images = snapshot.images(
        list(range(seed, seed + num_images)),
        labels=None if label is None else [label] * num_images,
        truncation=truncation,
    )
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(grid_png(images, columns=columns))
    click.echo(f"{num_images} images, seeds {seed} to {seed + num_images - 1}, in {path}")

"""forger prepare: images to shards."""

from __future__ import annotations

import click


@click.command("prepare")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DEST")
@click.option(
    "--labels", type=click.Path(), help="IDX file of labels, where it is not beside SRC."
)
@click.option(
    "--size", "size_px", type=click.IntRange(4, 4096), help="Width and height in pixels."
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="1 grey, 3 colour.")
@click.option("--fit", type=click.Choice(["crop", "pad"]), default="crop", show_default=True)
@click.option(
    "--filter",
    type=click.Choice(["box", "bilinear", "bicubic", "lanczos"]),
    default="lanczos",
    show_default=True,
    help="How cropped images are scaled.",
)
def command(source, destination, labels, size_px, channels, fit, filter) -> None:
    """Make checksummed shards in DEST from the images in SRC.

    SRC is embedded:digits, embedded:faces, an IDX file (MNIST's format) or a folder of images
    whose sub-folders are classes. Without --size the first image's size counts, padded to the next
    of 8, 16, 32, ... where it is none of these.
    """
    from pipeline.prepare import prepare

    with click.progressbar(length=1, label="preparing", width=40) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        shards = prepare(
            source,
            destination,
            labels=labels,
            size_px=size_px,
            channels=int(channels) if channels else None,
            fit=fit,
            filter=filter,
            progress=progress,
        )
    size = shards.image_size_px
    click.echo(
        f"{shards.num_images} images of {shards.channels} x {size} x {size}, "
        f"{shards.num_classes or 'no'} classes, digest {shards.digest[:12]}, in {shards.uri}"
    )
    if set_aside := shards.origin["set_aside"]:
        click.echo(
            f"{len(set_aside)} unreadable images were set aside; "
            f"{shards.uri}/index.json names them"
        )

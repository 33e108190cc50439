"""forger prepare: images to shards."""

from __future__ import annotations

from collections import Counter

import click

REASONS = 5  # that are told; the report has all


@click.command("prepare")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DEST")
@click.option(
    "--labels",
    metavar="FILE|none",
    help="Table of names and labels (.json, .jsonl, .csv, .tsv, .parquet; StyleGAN's dataset.json "
    "too), or an IDX or NumPy file of labels. 'none' ignores those that SRC has.",
)
@click.option("--name-column", help="Column of such a table that names the images.")
@click.option("--label-column", help="Column, or array of an .npz, that holds the labels.")
@click.option("--image-column", help="Column, or array of an .npz, that holds the images.")
@click.option("--split", help="Which split of a table to take, or 'all'.")
@click.option(
    "--size", "size_px", type=click.IntRange(4, 4096), help="Width and height in pixels."
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="1 grey, 3 colour.")
@click.option(
    "--fit",
    type=click.Choice(["crop", "letterbox", "stretch", "pad", "exact"]),
    help="crop (the default): the middle square. letterbox: the whole, with black bars. stretch: "
    "the whole, out of proportion. pad: a black border, nothing is scaled. exact: only images of "
    "that size.",
)
@click.option(
    "--filter",
    type=click.Choice(["box", "bilinear", "bicubic", "lanczos"]),
    default="lanczos",
    show_default=True,
    help="How images are scaled.",
)
@click.option("--linear", is_flag=True, help="Scale light instead of sRGB's codes.")
@click.option(
    "--encoding",
    type=click.Choice(["raw", "png", "webp", "jpeg"]),
    help="How images are stored; webp is lossless. Default: raw up to 64 px, webp above.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    metavar="SHARE",
    help="Share of the images that becomes a set of its own, DEST/held-out.",
)
@click.option("--dedupe", is_flag=True, help="Drop exact copies: images of equal decoded pixels.")
@click.option("--keep-order", is_flag=True, help="Do not shuffle the images.")
@click.option(
    "--max-bad",
    default="10%",
    show_default=True,
    metavar="N|P%",
    help="How many images may be set aside, whatever the reason, before the run stops with their "
    "list: a number, or a share of all, which allows at least 10.",
)
@click.option(
    "--processes", type=click.IntRange(1), help="Default: all cores, or Ray at RAY_ADDRESS."
)
def command(
    source, destination, labels, name_column, label_column, image_column, split, size_px, channels,
    fit, filter, linear, encoding, held_out, dedupe, keep_order, max_bad, processes,
) -> None:  # fmt: skip
    """Make checksummed shards in DEST from the images in SRC, and a report on them.

    SRC is a folder of images whose sub-folders are classes, a zip or tar of them, an IDX file
    (MNIST's format), a .npy or .npz array, a Parquet or Arrow data set with image bytes (as
    Hugging Face has them), a folder or s3:// prefix that holds one of these, or embedded:digits or
    embedded:faces. DEST is a folder or an s3:// prefix.

    Without --size all images must have one size that networks play, which is 8, 16, 32, ...; up to
    4 missing pixels become a black border, as around MNIST's 28. What cannot be used is set aside
    and named, with its reason, in DEST/report.json, and shown with a
    contact sheet in DEST/report.html. A run that was killed goes on with the same command.
    """
    from pipeline.prepare import prepare
    from pipeline.sources.opening import Wanted

    wanted = Wanted(
        labels=labels,
        name_column=name_column,
        label_column=label_column,
        image_column=image_column,
        split=split,
    )
    with click.progressbar(length=1, label="preparing", width=40) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        shards = prepare(
            source,
            destination,
            wanted=wanted,
            channels=int(channels) if channels else None,
            progress=progress,
            size_px=size_px,
            fit=fit,
            filter=filter,
            linear=linear,
            encoding=encoding,
            held_out=held_out,
            dedupe=dedupe,
            keep_order=keep_order or None,
            max_bad=max_bad,
            processes=processes,
        )
    tell(shards)


def tell(shards) -> None:
    """Prints the essentials."""
    origin, size = shards.origin, shards.image_size_px
    click.echo(
        f"{shards.num_images} images of {shards.channels} x {size} x {size}, "
        f"{shards.num_classes or 'no'} classes, digest {shards.digest[:12]}, in {shards.uri}"
    )
    if origin["num_held_out"]:
        click.echo(f"{origin['num_held_out']} more are held out, in {shards.uri}/held-out")
    if count := origin["num_enlarged"]:
        click.echo(f"{count} images were smaller and had to be enlarged")
    if count := origin["num_copies"]:
        click.echo(f"{count} exact copies were dropped")
    if origin["fit"] == "pad":
        click.echo(f"images smaller than {size} x {size} have a black border")
    if count := origin["num_set_aside"]:
        click.echo(f"{count} images were set aside; {shards.uri}/report.json names them:")
        named = {one["reason"]: one["image"] for one in reversed(origin["set_aside"])}
        counts = Counter(one["reason"] for one in origin["set_aside"])
        for reason, times in counts.most_common(REASONS):
            click.echo(f"  {times}: {reason} ({named[reason]}{', ...' if times > 1 else ''})")
        if (more := len(counts) - REASONS) > 0:
            click.echo(f"  {more} more reasons")
    click.echo(f"report: {shards.uri}/report.html")

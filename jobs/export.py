"""forger export: a generator for other runtimes."""

from __future__ import annotations

import click

from jobs.options import storage_option


@click.command("export")
@click.argument("model", metavar="MODEL")
@click.argument("destination", metavar="DEST.onnx")
@storage_option
def command(model, destination, storage) -> None:
    """Write MODEL as ONNX, for serving without torch.

    MODEL as in `forger sample`. Inputs are z (n, latent_dim), float32, and labels (n,), int64,
    where it knows classes; the output is images (n, c, h, w) in [-1, 1]. ONNX runtimes compute in
    float32: now and then a pixel's byte is one off that of `forger sample`.
    """
    from pipeline.export import export_onnx
    from pipeline.find import find_generator

    done = export_onnx(find_generator(model, storage=storage), destination)
    click.echo(
        f"{done.path}: {done.num_bytes / 1e6:.2f} MB; over 16 seeds values are at most "
        f"{done.max_abs_diff:.1e} off, {done.num_pixels_off} of {done.num_pixels} bytes differ"
    )

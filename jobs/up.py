"""forger up: Ray, MLflow and an S3 store on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.options import stack_option


@click.command("up")
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Raylets that share this machine's CPUs; with none, the head works itself.",
)
@click.option(
    "--store",
    type=click.Choice(["auto", "ceph", "folder"]),
    default="auto",
    show_default=True,
    help="auto: the S3 store at AWS_ENDPOINT_URL, or Ceph; folder: no S3, files in the folder.",
)
@click.option("--bucket", default="forger", show_default=True, help="Its bucket.")
@stack_option
def command(workers, store, bucket, folder) -> None:
    """Start Ray, MLflow and an S3 store on this machine, without Docker.

    Use it as eval "$(forger up)": what it prints lets this shell's commands find all of it,
    `forger submit` and `forger train` alike. Servers listen on loopback, on ports that were free;
    Ray's own gRPC ports listen on every interface, and ask for a token. Data, logs, token and
    secrets are in the folder, for its owner alone. `forger down` ends it.
    """
    from pipeline.stack.service import StackError
    from pipeline.stack.stack import shell_lines, up

    try:
        stack = up(
            Path(folder), workers=workers, store=store, bucket=bucket,
            said=lambda text: click.echo(text, err=True),
        )  # fmt: skip
    except StackError as error:
        raise click.ClickException(f"{error}\nnothing was left running") from error
    for name, address in stack.addresses.items():
        click.echo(f"{name:<9}{address}", err=True)
    click.echo(shell_lines(Path(folder)))

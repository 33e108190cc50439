"""forger down: ends what `forger up` started."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.options import stack_option


@click.command("down")
@click.option("--purge", is_flag=True, help="Delete the folder with all that was stored in it.")
@stack_option
def command(purge, folder) -> None:
    """Stop what `forger up` started, and its jobs. What was stored stays for the next time.

    Use it as eval "$(forger down)": what it prints lets this shell forget the stack.
    """
    from pipeline.stack.stack import down

    ended = down(Path(folder), purge=purge)
    if ended is None:
        click.echo(f"nothing is up in {folder}", err=True)
        return
    click.echo(f"{len(ended.services)} servers ended", err=True)
    click.echo(f"unset {' '.join(ended.variables)}")

"""forger report: a search as one page that opens offline."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gan.config import ConfigError
from jobs.options import storage_option


@click.command("report")
@click.argument("name", metavar="NAME")
@storage_option
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where the page goes; NAME.html where left out.",
)
@click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")
def command(name, storage, output, open_it) -> None:
    """Write the page of the search NAME, at any time during or after it.

    One HTML file that needs nothing else and loads nothing: learning curves, settings and scores,
    what was stopped and why, and the best experiment. Prints where it is.
    """
    from pipeline.search_report import page_of

    path = Path(output or f"{name}.html")
    text = page_of(storage, name)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")  # an open page is never half a page
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError([f"the page cannot be written to {path}: {error.strerror}"]) from None
    click.echo(path)
    if open_it:
        click.launch(path.resolve().as_uri())

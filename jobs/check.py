"""forger check: whether an experiment can run, before it costs anything."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.preflight.findings import Finding


@click.command("check")
@click.argument("experiment", metavar="EXPERIMENT.toml", type=click.Path())
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0),
    help="Of one worker's machine or device; then the run's cost is estimated.",
)
@click.option(
    "--wait-sec",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    help="For nodes that an autoscaler has to make.",
)
def command(experiment, overrides, price_per_hour, wait_sec) -> None:
    """Look at all that an experiment needs, here and on its workers, and play a few rounds.

    A line for each thing: what, found, and where it is wrong needed and remedy. Exit code 0: all
    good; 1: something is wrong; 2: a mistake in the file or the command.
    """
    from pipeline.experiment_file import load_experiment

    loaded = load_experiment(experiment, overrides)
    single = loaded.experiment.replace("search", None)
    from pipeline.preflight.findings import good

    _print(good("file", f"{experiment}: {len(single.flat())} settings, none refused"))
    from pipeline.preflight.check import check

    checked = check(
        single, _print, said=click.echo, wait_sec=wait_sec, price_per_hour=price_per_hour
    )
    if checked.estimate is not None:
        speed = f"{checked.estimate.img_per_sec:,.0f} img/s"
        click.echo(f"\n{single.turns.total_kimg:g} kimg at {speed}: {checked.estimate}")
    wrong = [finding for finding in checked.findings if finding.state == "wrong"]
    click.echo("good" if checked.good else f"{len(wrong)} wrong")
    sys.exit(0 if checked.good else 1)


def _print(finding: Finding) -> None:
    click.echo(str(finding))

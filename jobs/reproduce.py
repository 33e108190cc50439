"""forger reproduce: a registered generator trained again from its lineage."""

from __future__ import annotations

import sys

import click


@click.command("reproduce")
@click.argument("model", metavar="MODEL")
@click.option("--data", metavar="DATA", help="The prepared data, where it lies elsewhere now.")
@click.option(
    "--storage",
    default="runs",
    show_default=True,
    help="Where the runs and the local registry are.",
)
@click.option(
    "--images",
    type=click.IntRange(2),
    default=10_000,
    show_default=True,
    help="Judged where the bits differ.",
)
def command(model, data, storage, images) -> None:
    """Train MODEL again as its version says, and compare the weights bit for bit.

    MODEL is models:/NAME@champion or models:/NAME/VERSION. The data must have the digest that the
    version names. The same packages, device kind and number of workers give the same bits; where
    they differ, the two are compared by the promotion test's Frechet distance. Exit code 0: the
    same bits, or no difference that the test sees; 1: another generator.
    """
    from pathlib import Path

    from gan.config import ConfigError
    from jobs.train import Screen
    from pipeline.find import find_generator
    from pipeline.reproduce import equivalent, experiment_of, reproduce

    original = find_generator(model, storage=storage)
    experiment = experiment_of(original, storage=str(Path(storage).resolve()), data=data)
    click.echo(
        f"{model}: {original.card.nimg / 1000:g} kimg of {experiment.name}, "
        f"seed {experiment.seed}, {experiment.cluster.workers} workers"
    )
    done = reproduce(original, experiment, Screen(experiment.turns.total_kimg).watcher())
    for difference in done.differences:
        click.echo(f"differs  {difference}")
    if done.copy is None:
        raise ConfigError([f"stopped at {done.nimg / 1000:g} kimg; the same command goes on"])
    if done.identical:
        click.echo(f"identical: the weights are the same, bit for bit ({original.sha256[:12]})")
        return
    click.echo(f"the weights differ by up to {done.largest_difference:.3g}")
    verdict = equivalent(done, experiment, images=images, storage=storage)
    click.echo(verdict.sentence)
    sys.exit(0 if verdict.same else 1)

"""forger reproduce: a registered generator trained again from its lineage."""

from __future__ import annotations

import sys

import click

from jobs.options import Progress, images_option, storage_option


@click.command("reproduce")
@click.argument("model", metavar="MODEL")
@click.option("--data", metavar="DATA", help="The prepared data, where it lies elsewhere now.")
@storage_option
@images_option("Judged where the bits differ.", fewest=2)
def command(model, data, storage, images) -> None:
    """Train MODEL again as its version says, and compare the weights bit for bit.

    MODEL is models:/NAME@champion or models:/NAME/VERSION. The data must have the digest that the
    version names. On CPU the same packages and number of workers give the same bits; on GPUs the
    kernels may differ, and that has not been run. Where bits differ, the two are compared by the
    promotion test's Frechet distance. Exit code 0: the same bits, or no difference that the test
    sees; 1: another generator.
    """
    from gan.config import ConfigError
    from jobs.train import Screen
    from pipeline.find import find_generator
    from pipeline.reproduce import experiment_of, held_against, reproduce
    from pipeline.storage import open_storage

    original = find_generator(model, storage=storage)
    experiment = experiment_of(original, storage=open_storage(storage).uri, data=data)
    click.echo(
        f"{model}: {original.card.nimg / 1000:g} kimg of {experiment.name}, "
        f"seed {experiment.seed}, {experiment.cluster.max_workers} workers"
    )
    done = reproduce(original, experiment, Screen(experiment.turns.total_kimg).watcher())
    for difference in done.differences:
        click.echo(f"differs  {difference}")
    if done.copy is None:
        raise ConfigError(["stopped before the end; the same command goes on"])
    if done.identical:
        click.echo(f"identical: the weights are the same, bit for bit ({original.sha256[:12]})")
        return
    click.echo(f"the weights differ by up to {done.largest_difference:.3g}")
    with Progress() as told:
        verdict = held_against(original, done.copy, storage=storage, images=images, told=told)
    click.echo(verdict.sentence)
    sys.exit(0 if verdict.indistinguishable else 1)

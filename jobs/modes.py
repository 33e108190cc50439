"""forger modes: whether a recipe finds every mode of a mixture whose modes are known."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from jobs.options import INTERRUPTED, Progress

if TYPE_CHECKING:
    from gan.config import GameConfig
    from gan.modes import Modes
    from pipeline.mode_games import Mixture, Played

PUBLISHED = {  # Lin et al. 2018 (arXiv 1712.04086), tables 1 and 3; Huang et al. 2024, section 5
    "ring": (
        "2,500 samples, nearest mode, good within 3 sigma; a G of 4 x 400 and a maxout D, 400,000 "
        "turns of batch 100, mean of 10 runs",
        (("GAN", "6.3", "0.45", "98.2 %"), ("PacGAN2", "7.9", "0.07", "95.6 %")),
    ),
    "grid": (
        "as for the ring",
        (("GAN", "17.3", "0.70", "94.8 %"), ("PacGAN4", "24.8", "0.04", "93.6 %")),
    ),
    "stacked": (
        "26,000 samples, all counted; DCGAN-sized players on 128,000 stacks of 28 px, 100,000 "
        "turns of batch 64; R3GAN with networks and a classifier of its own",
        (
            ("DCGAN", "78.9", "4.50", "-"),
            ("VEEGAN", "150", "2.95", "-"),
            ("PacDCGAN2", "1000", "0.06", "-"),
            ("R3GAN", "1000", "0.029", "-"),
        ),
    ),
}
GOOD = {"ring": "high quality", "grid": "high quality", "stacked": "confident"}
PROTOCOL = {
    "ring": "2,500 samples of G_ema; of high quality: within 3 sigma of a mode, only these count; "
    "8 Gaussians at radius 1, sigma 0.01",
    "grid": "2,500 samples of G_ema; of high quality: within 3 sigma of a mode, only these count; "
    "25 Gaussians 2 apart, sigma 0.05",
    "stacked": "26,000 samples of G_ema at 32 px, all counted, named by the embedded classifier "
    "(99.35 % right on 2,000 digits it never saw); confident: above 0.9 on all three digits",
}


@click.command("modes")
@click.argument("mixture", metavar="ring|grid|stacked", type=click.Choice(list(PUBLISHED)))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Games to play."
)
@click.option(
    "--first-seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first game."
)
@click.option(
    "--looks", type=click.IntRange(1, 1000), default=1, show_default=True,
    help="Counts of modes in the course of each game.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Games at a time."
)
@click.option(
    "--keep", metavar="DIR",
    help="Where games are kept as they go: the same command goes on after a kill.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(), help="A PNG of the first game's samples.")
def command(mixture, overrides, seeds, first_seed, looks, processes, keep, output) -> None:
    """Play games on a mixture of known modes, and count the modes found.

    Overrides name settings as an experiment file does: objective.name=hinge turns.total_kimg=2000.
    Ring and grid are minutes on a laptop's CPU; `stacked` needs hours there to end as published
    tables do, so give it a --keep. A GPU is used where there is one (cluster.device=cpu: not).
    """
    from gan.config import ConfigError, check_sample
    from pipeline.experiment_file import load_experiment

    if output and Path(output).suffix.lower() != ".png":
        raise ConfigError([f"--output must end in .png, got {output!r}"])
    file = Path(__file__).parent / "experiments" / f"{mixture}.toml"
    experiment = load_experiment(file, overrides).experiment
    game, wanted = experiment.game, experiment.cluster.device
    from pipeline.devices import compute_repeatably, device_here
    from pipeline.mode_games import floor
    from pipeline.mode_games import mixture as mixture_of

    device = device_here(wanted)
    if wanted == "cuda" and device != "cuda":
        raise ConfigError(["cluster.device = 'cuda' needs a GPU, and torch sees none here"])
    repeatably = experiment.cluster.deterministic
    if repeatably:
        compute_repeatably(device)
    check_sample(game, mixture_of(mixture).sample)
    click.echo(f"{mixture}: {PROTOCOL[mixture]}")
    click.echo(f"{'':<22}{'modes':>10}{'KL (nats)':>11}{GOOD[mixture]:>14}")
    _row("real samples", floor(mixture, device))
    numbers = range(first_seed, first_seed + seeds)
    places = {seed: keep and f"{keep.rstrip('/')}/{mixture}-{seed}" for seed in numbers}
    try:
        played = _play_all(mixture, game, device, repeatably, places, looks, processes)
    except KeyboardInterrupt:
        if not keep:
            raise
        click.echo("stopped; the same command goes on where it was")
        click.get_current_context().exit(INTERRUPTED)
    every = sum(one.end.found == one.end.of for one in played)
    click.echo(f"all modes in {every} of {len(played)} games")
    words, rows = PUBLISHED[mixture]
    click.echo(f"published, under another protocol: {words}")
    for who, found, kl, good in rows:
        click.echo(f"{who:<22}{found:>10}{kl:>11}{good:>14}")
    if output:
        from pipeline.pictures import grid_png, points_png

        samples = played[0].samples
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grid_png(samples) if samples.ndim == 4 else points_png(samples))
        click.echo(f"samples of seed {played[0].seed} in {path}")


def _row(who: str, modes: Modes) -> None:
    found = f"{modes.found}/{modes.of}"
    click.echo(f"{who:<22}{found:>10}{modes.reverse_kl:>11.3f}{modes.good:>13.1%} ".rstrip())


def _looked(progress: Progress, seed: int, total: int, nimg: int, modes: Modes) -> None:
    progress.pause()
    _row(f"seed {seed}" + (f" at {nimg / 1000:g}" if nimg < total else ""), modes)


def _play_all(
    mixture: Mixture,
    game: GameConfig,
    device: str,
    repeatably: bool,
    places: Mapping[int, str | None],
    looks: int,
    processes: int,
) -> list[Played]:
    """The game of every seed, kept in its place and printed as it goes; where several go on at a
    time, printed as they end, and the bar is of games.
    """
    from pipeline.mode_games import play

    total = game.turns.total_nimg
    with Progress() as progress:
        if processes == 1:
            return [
                play(
                    mixture,
                    game,
                    seed=seed,
                    device=device,
                    looks=looks,
                    heard=partial(progress, f"seed {seed}"),
                    looked=partial(_looked, progress, seed, total),
                    keep=place,
                )
                for seed, place in places.items()
            ]
        # Spawned: a forked process would inherit torch's threads in whatever state they are.
        how = {"mp_context": get_context("spawn"), "initargs": (device, repeatably)}
        with ProcessPoolExecutor(processes, initializer=_begin, **how) as pool:
            try:
                jobs = [
                    pool.submit(_alone, mixture, game, seed, device, looks, place)
                    for seed, place in places.items()
                ]
                for done, job in enumerate(as_completed(jobs), 1):
                    progress("games", done, len(jobs))
                    for look in job.result().course:
                        _looked(progress, job.result().seed, total, *look)
            except BaseException:  # leaving the pool would wait for all of its games
                for child in active_children():
                    child.terminate()
                raise
            return [job.result() for job in jobs]


def _begin(device: str, repeatably: bool) -> None:
    """First in a process of the pool: Ctrl-C is its parent's to hear, and it ends with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    if repeatably:
        from pipeline.devices import compute_repeatably

        compute_repeatably(device)


def _end_with(parent: BaseProcess) -> None:
    """A game of a killed command would play on, and hold the place where it is kept."""
    parent.join()
    os._exit(1)


def _alone(
    mixture: Mixture, game: GameConfig, seed: int, device: str, looks: int, place: str | None
) -> Played:
    """A game on one thread, as one of several."""
    import torch

    from pipeline.mode_games import play

    torch.set_num_threads(1)
    return play(mixture, game, seed=seed, device=device, looks=looks, keep=place)

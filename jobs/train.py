"""forger train: an experiment to a registered generator."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.dataset import ShardSet
    from pipeline.experiment import Experiment
    from pipeline.experiment_file import Loaded
    from pipeline.journal import JournalLine
    from pipeline.run import Run
    from pipeline.train import Trained

COLUMNS = (  # heading, width, metric, format
    ("img/s", 7, "speed/img_per_sec", "{:.0f}"),
    ("d/loss", 8, "d/loss", "{:.4f}"),
    ("g/loss", 8, "g/loss", "{:.4f}"),
    ("value", 8, "game/value", "{:.4f}"),
)
SHOWN = ("fd", "kid")  # of the scores


@click.command("train")
@click.argument("experiment", metavar="EXPERIMENT.toml", type=click.Path())
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print the resolved experiment and start nothing.")
@click.option("--again", is_flag=True, help="Where the run is complete, begin another beside it.")
@click.option(
    "--fork",
    metavar="[NAME]",
    is_flag=False,
    flag_value="",
    help="Go on from the run's newest checkpoint with changed settings, as a run of this name; "
    "left out, it is the run's with -fork.",
)
def command(experiment, overrides, dry_run, again, fork) -> None:
    """Train an experiment and register its best generator.

    Overrides name settings as the file does: turns.total_kimg=100 cluster.workers=2. The same
    command resumes a run that was stopped. Without RAY_ADDRESS a Ray of this machine's own is
    started; without MLFLOW_TRACKING_URI tracking goes to a file beside the runs.
    """
    if fork is not None and again:
        raise click.UsageError("--fork goes on, --again begins anew: only one of them")
    if fork and "=" in fork:  # an override that follows --fork is no name
        overrides, fork = (fork, *overrides), ""
    from pipeline.experiment_file import load_experiment

    loaded = load_experiment(experiment, overrides)
    if dry_run:
        _print_resolved(loaded)
        return
    shards = _data_of(loaded.experiment)
    if fork is not None:
        _check_parent(loaded.experiment)
    click.echo(f"{loaded.experiment.name}: loading torch, ray and mlflow")
    tell_of_judge(loaded.experiment, shards)
    from pipeline.train import train

    single = loaded.experiment.replace("search", None)  # its [search] is for `forger search`
    screen = Screen(loaded.experiment.turns.total_kimg)
    with going_on():
        trained = train(single, screen.watcher(), again=again, fork=fork)
    words = ["train", experiment, *overrides, *(["--again"] if again else [])]
    words += ["--fork", *([fork] if fork else [])] if fork is not None else []
    print_end(trained, shlex.join(["forger", *words]))


@contextmanager
def going_on() -> Iterator[None]:
    """A training that failed ends the command with the reason, and how to go on."""
    from pipeline.train import TrainingError

    try:
        yield
    except TrainingError as error:
        raise click.ClickException(
            f"{error}\nthe same command goes on from the last checkpoint"
        ) from error


def _data_of(experiment: Experiment) -> ShardSet:
    """The data of an experiment, by its index. Raises ConfigError, which names it, where the
    experiment cannot be played on it.
    """
    from gan.config import ConfigError, check_sample
    from jobs.modes import PUBLISHED
    from pipeline.data_checks import check_data
    from pipeline.dataset import INDEX, open_shards
    from pipeline.storage import open_storage

    where = experiment.data.shards
    for mixture in PUBLISHED:
        if where == f"data/{mixture}" and not open_storage(where).exists(INDEX):
            raise ConfigError(
                [f"there is no prepared data at {where}; the {mixture} of jobs/experiments is "
                 f"played by `forger modes {mixture}`, which draws its own"]
            )  # fmt: skip
    shards = open_shards(where)
    try:
        check_sample(experiment.game, shards.sample)
        check_data(experiment.data, shards)
    except ConfigError as error:
        raise ConfigError(f"{shards.uri}: {mistake}" for mistake in error.mistakes) from None
    return shards


def _check_parent(experiment: Experiment) -> None:
    """Raises ConfigError where there is no run that --fork could go on from."""
    from gan.config import ConfigError
    from pipeline.run import RECORD
    from pipeline.storage import open_storage

    runs, name = open_storage(experiment.cluster.storage), experiment.name
    if not runs.exists(f"{name}/{RECORD}"):
        raise ConfigError(
            [f"--fork goes on from the run that the experiment's name says, and there is no run "
             f"{name} in {runs.uri}; set name=... to the run's, which `forger runs` lists"]
        )  # fmt: skip


def tell_of_judge(experiment: Experiment, shards: ShardSet) -> None:
    """Says what an extractor does not see that is the default and not made for such images."""
    from pipeline.extractor_names import coarse

    if words := coarse(experiment.evaluate, shards.sample):
        click.echo(words)


def _print_resolved(loaded: Loaded) -> None:
    """Every setting, with where each that is no default came from; then the data, checked against
    it.
    """
    from gan.sizes import sizes
    from pipeline.extractor_names import check_extractor

    section = None
    for key, value in loaded.experiment.flat().items():
        head, _, last = key.partition(".")
        if last and head != section:
            section = head
            click.echo(f"[{head}]")
        source = next(
            (s for k, s in loaded.sources.items() if f"{key}.".startswith(f"{k}.")), None
        )
        shown = f"{last or key} = {_toml(value)}"
        click.echo(f"{shown:<44}# {source}" if source else shown)
    shards = _data_of(loaded.experiment)
    check_extractor(loaded.experiment.evaluate)
    shape = " x ".join(map(str, shards.sample.shape))
    click.echo(
        f"\n{shards.uri}: {shards.num_images} images of {shape}, digest {shards.digest[:12]}"
    )
    for player, size in zip("GD", sizes(loaded.experiment.game, shards.sample), strict=True):
        click.echo(
            f"{player}: {size.parameters:,} parameters, "
            f"{size.flops / 1e6:,.2f} MFLOP for an image forwards"
        )
    tell_of_judge(loaded.experiment, shards)


def _toml(value: object) -> str:
    if value is None:
        return '"" (chosen by the run)'
    return (
        f'"{value}"'
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else str(list(value) if isinstance(value, tuple) else value)
    )


class Screen:
    """One aligned line a tick."""

    def __init__(self, total_kimg: float):
        self.total_kimg = total_kimg
        self.started = time.monotonic()
        self.first_nimg = 0
        self.lines = 0

    def watcher(self):
        """The callbacks that the stage tells its progress to."""
        from pipeline.train import Watcher

        return Watcher(begun=self.begun, ticked=self.ticked, said=lambda text: click.echo(text))

    def begun(self, run, url: str, nimg: int) -> None:
        """Says where everything is."""
        self.first_nimg = nimg
        cluster = run.experiment.cluster
        click.echo(f"run      {run.storage.uri}")
        click.echo(f"tracking {url}")
        verb = f"resuming at {nimg / 1000:.1f}" if nimg else "playing"
        click.echo(f"{verb} of {self.total_kimg:g} kimg on {cluster.workers} worker(s)")

    def ticked(self, line: JournalLine) -> None:
        """Prints a tick."""
        if self.lines % 20 == 0:
            heads = "".join(f"{head:>{width}}" for head, width, _, _ in COLUMNS)
            click.echo(f"{'kimg':>8}{'left':>7}{heads}  score")
        self.lines += 1
        cells = "".join(
            f"{form.format(line.metrics[name]) if name in line.metrics else '':>{width}}"
            for _, width, name, form in COLUMNS
        )
        scores = "  ".join(shown_scores(line.metrics))
        speed = line.metrics["speed/img_per_sec"]
        left = (self.total_kimg * 1000 - line.nimg) / speed
        click.echo(f"{line.nimg / 1000:>8.1f}{_clock(left):>7}{cells}  {scores}".rstrip())


def shown_scores(metrics: dict[str, float]) -> list[str]:
    """The distances, for one line; errors and the rest are in the journal and in MLflow."""
    from pipeline.card import measure_of

    return [
        f"{name.removeprefix('score/')} {value:.4g}"
        for name, value in metrics.items()
        if measure_of(name) in SHOWN
    ]


def _clock(seconds: float) -> str:
    minutes, sec = divmod(round(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{sec:02}s"


def print_end(trained: Trained, command_line: str) -> None:
    """Says what a run came to, and what to type next."""
    if not trained.finished:
        if job := os.environ.get("FORGER_JOB"):
            command_line = f"forger resume {job}"
        click.echo(f"stopped at {trained.nimg / 1000:.1f} kimg; to go on: {command_line}")
        return
    registered, run = trained.registered, trained.run
    best = run.best()
    assert best is not None
    scores = ", ".join(shown_scores(best.card.scores))
    click.echo(
        f"\ncomplete at {trained.nimg / 1000:.1f} kimg; "
        f"best at {best.card.nimg / 1000:.1f} kimg: {scores}"
    )
    if trained.goodput is not None and trained.goodput.all_sec > 0:
        click.echo(str(trained.goodput))
    click.echo(f"samples  {run.storage.uri}/{best.folder}/samples.png")
    if not trained.delivered:
        click.echo(f"MLflow did not take it; {resume_command(run)} delivers it")
        return
    click.echo(f"look     {trained.mlflow_url}")
    if registered is not None:
        known = ", the same generator as before" if registered.known else ""
        name = registered.model.removesuffix("-candidates")
        click.echo(f"model    registered as candidate {registered.uri}{known}")
        click.echo(f"draw     forger sample {registered.uri} -n 64 --seed 0 -o grid.png")
        click.echo(f"promote  forger promote {name}")


def resume_command(run: Run) -> str:
    """What to type to go on with a run, in the folder where it was begun."""
    storage = run.experiment.cluster.storage
    words = ["forger", "resume", run.name, *(["--storage", storage] if storage != "runs" else [])]
    return shlex.join(words)

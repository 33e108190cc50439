"""forger search: a space of experiments to the best generator."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.experiment import Experiment
    from pipeline.ledger import Ledger, Trial
    from pipeline.search import Searched
    from pipeline.space import Space

STATUS_SEC = 10
NUM_SAMPLES = 5


@click.command("search")
@click.argument("experiment", metavar="EXPERIMENT.toml", type=click.Path(), required=False)
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--dry-run", is_flag=True, help="Print the space, samples and the cost; no trial.")
@click.option("--again", is_flag=True, help="Where the search is complete, begin another.")
@click.option("--show", metavar="NAME", help="The table of a search, under way or complete.")
@click.option(
    "--storage",
    default="runs",
    show_default=True,
    help="With --show: where the searches are; else cluster.storage says it.",
)
def command(experiment, overrides, dry_run, again, show, storage) -> None:
    """Search the settings in [search.space] and register the best generator as a candidate.

    Overrides name settings as the file does: search.trials=32 turns.total_kimg=30. The same
    command goes on with a search that was interrupted: finished trials stay finished.
    """
    if show is not None:
        _show(storage, show)
        return
    if experiment is None:
        raise click.UsageError("EXPERIMENT.toml is missing (or --show NAME)")
    from pipeline.experiment_file import load_experiment

    loaded = load_experiment(experiment, overrides, for_search=True).experiment
    if dry_run:
        _dry_run(loaded)
        return
    click.echo(f"{loaded.name}: loading torch, ray and mlflow")
    from pipeline.search import SearchError, Watcher, search

    screen = Screen(loaded)
    watcher = Watcher(begun=screen.begun, changed=screen.changed, said=click.echo)
    words = ["forger", "search", experiment, *overrides, *(["--again"] if again else [])]
    try:
        searched = search(loaded, watcher, again=again)
    except SearchError as error:
        raise click.ClickException(
            f"{error}\nthe same command goes on where it was; trials that failed stay failed"
        ) from error
    _print_end(searched, shlex.join(words))


class Screen:
    """A line for every trial that ends, and now and then one for those that run."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.objective = experiment.search.objectives[0] if experiment.search else "fd"
        self._told: dict[int, str] = {}
        self._running: dict[int, Trial] = {}
        self._next_status = time.monotonic() + STATUS_SEC

    def begun(self, ledger: Ledger, url: str) -> None:
        """Says where everything is."""
        config = ledger.config
        click.echo(f"search   {ledger.storage.uri}")
        click.echo(f"tracking {url}")
        click.echo(
            f"{config.trials} {'members' if config.scheduler == 'pbt' else 'trials'} of "
            f"{self.experiment.turns.total_kimg:g} kimg, {config.searcher} searcher, "
            f"scheduler {config.scheduler}"
        )

    def changed(self, trial: Trial) -> None:
        """Tells of a trial that ended, and every so often of those that run."""
        if trial.state == "running":
            self._running[trial.number] = trial
        else:
            self._running.pop(trial.number, None)
            if self._told.get(trial.number) != trial.state:
                self._told[trial.number] = trial.state
                click.echo(line_of(trial, self.objective))
        if time.monotonic() >= self._next_status and self._running:
            self._next_status = time.monotonic() + STATUS_SEC
            running = [_progress(trial, self.objective) for trial in self._running.values()]
            click.echo(f"  playing {', '.join(running)}")


def _progress(trial: Trial, objective: str) -> str:
    score = f", {_shown(trial, objective)}" if trial.readings else ""
    return f"{trial.number} ({trial.nimg / 1000:.3g} of {trial.until_nimg / 1000:.3g} kimg{score})"


def line_of(trial: Trial, objective: str) -> str:
    """One trial as a line of the table."""
    settings = ", ".join(f"{name} {_short(value)}" for name, value in trial.point.items())
    seen = f"{trial.nimg / 1000:>8.1f} kimg"
    words = f"{trial.number:>4} {trial.state:<9}{seen} {_shown(trial, objective):>18}  "
    reason = f"\n{'':>15}{trial.reason}" if trial.reason else ""
    return f"{words}{settings or trial.origin}{reason}"


def _shown(trial: Trial, objective: str) -> str:
    """The best value of an objective so far, with its error."""
    best = trial.best(objective)
    if best is None:
        return "-"
    error = best.errors.get(objective, 0.0)
    return f"{best.values[objective]:.4g}" + (f" ± {error:.2g}" if error else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(trials: list[Trial], objective: str) -> None:
    """All trials, best first, then those without a score."""
    from pipeline.ledger import best_of

    ranked = best_of(trials, objective)
    rest = [trial for trial in trials if trial not in ranked]
    click.echo(f"{'#':>4} {'state':<9}{'seen':>13} {'best ' + objective:>18}  settings")
    for trial in [*ranked, *rest]:
        click.echo(line_of(trial, objective))


def _show(storage: str, name: str) -> None:
    from pipeline.ledger import BEST, Ledger
    from pipeline.storage import open_storage

    ledger = Ledger.at(open_storage(f"{storage}/{name}"))
    trials = ledger.trials()
    for trial in trials:
        if trial.state == "running" and ledger.has_run(trial):
            ledger.catch_up(trial)
    _table(trials, ledger.config.objectives[0])
    spent = sum(trial.spent_nimg for trial in trials) / 1000
    hours = sum(trial.device_sec for trial in trials) / 3600
    click.echo(f"{spent:.1f} kimg in {hours:.2f} device hours")
    result = ledger.result
    if result is None:
        click.echo(f"under way or interrupted; page: forger report {name} --storage {storage}")
    else:
        best = f"{ledger.storage.uri}/{BEST}"
        click.echo(f"complete; the best is trial {result['best']}: {best}")


def _dry_run(experiment: Experiment) -> None:
    """The space, a few samples, and what it will cost."""
    from jobs.train import tell_of_judge
    from pipeline.dataset import open_shards

    shards = open_shards(experiment.data.shards)
    tell_of_judge(experiment, shards)
    click.echo(f"{experiment.name}: loading torch, to measure how fast this machine plays")
    from pipeline.search_fits import checked_space
    from pipeline.suggest import suggester_for
    from pipeline.warm_start import earlier_trials

    space = checked_space(experiment, shards)
    earlier = earlier_trials(experiment, shards)
    config = experiment.search
    assert config is not None
    _print_space(space)
    suggester = suggester_for(config, space, experiment, earlier=earlier)
    click.echo("the first trials:")
    points = []
    for number in range(min(NUM_SAMPLES, config.trials)):
        suggestion = suggester.ask(number)
        if suggestion is None:
            break
        points.append(suggestion.point)
        drawn = ", ".join(f"{name} {_short(value)}" for name, value in suggestion.point.items())
        click.echo(f"{number:>4} {drawn}  ({suggestion.origin})")
    _print_cost(experiment, [space.experiment(experiment, point) for point in points], shards)


def _print_space(space: Space) -> None:
    for dimension in space.dimensions:
        what = list(dimension.options) or f"[{dimension.low:g}, {dimension.high:g}]"
        when = "".join(
            f", where {key} is {' or '.join(map(str, values))}" for key, values in dimension.when
        )
        click.echo(f"{dimension.name:<44}{dimension.kind} {what}{when}")
    for key, other in space.same:
        click.echo(f"{key:<44}the same as {other}")


def _print_cost(experiment: Experiment, samples: list[Experiment], shards) -> None:
    from pipeline.probe import speed_of

    config = experiment.search
    assert config is not None
    kimg = config.trials * experiment.turns.total_kimg
    if config.budget_kimg is not None:
        kimg = min(kimg, config.budget_kimg)
    speeds = [(speed_of(sample, shards), sample) for sample in samples]
    each = sum(speed.seconds(sample) for speed, sample in speeds) / len(speeds)
    hours = each * kimg / experiment.turns.total_kimg / 3600
    device = speeds[0][0].device
    click.echo(
        f"at most {kimg:g} kimg seen by D ({config.trials} x {experiment.turns.total_kimg:g}), "
        f"about {hours:.2g} device hours ({device}; {len(speeds)} of the trials were played for "
        f"2 s each on this machine: "
        f"{min(s.img_per_sec for s, _ in speeds):.0f} to "
        f"{max(s.img_per_sec for s, _ in speeds):.0f} img/s)"
    )


def _print_end(searched: Searched, command_line: str) -> None:
    from pipeline.ledger import BEST

    ledger = searched.ledger
    click.echo("")
    _table(searched.trials, ledger.config.objectives[0])
    if not searched.finished:
        click.echo(f"stopped; to go on: {command_line}")
        return
    click.echo("")
    for finalist in searched.finalists:
        verdict = "tied with the best" if finalist.tied else ""
        click.echo(
            f"judged again: trial {finalist.number:>3}  {finalist.mean:.4g} ± "
            f"{finalist.error:.2g}  {verdict}".rstrip()
        )
    objectives = ledger.config.objectives
    if len(objectives) > 1:
        front = ", ".join(map(str, (ledger.result or {})["front"]))
        click.echo(f"front    no trial beats these in {' and '.join(objectives)}: {front}")
    registered = searched.registered
    assert registered is not None
    name = registered.model.removesuffix("-candidates")
    storage = ledger.experiment.cluster.storage
    click.echo(f"best     trial {searched.finalists[0].number}: {ledger.storage.uri}/{BEST}")
    click.echo(f"model    registered as candidate {registered.uri}")
    click.echo(f"page     forger report {ledger.name} --storage {storage} --open")
    click.echo(f"look     {searched.mlflow_url}")
    click.echo(f"promote  forger promote {name}")

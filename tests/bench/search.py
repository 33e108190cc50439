"""python -m tests.bench.search compare|seeds|overhead DATA FOLDER: what a search is worth.

compare: random, ASHA, PBT and TPE with ASHA on jobs/experiments/digits-search.toml, at equal total
images. seeds: the winner of a search in FOLDER against the file's own settings, five training
seeds each. overhead: a search against the same trials as bare loops on the same cores.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scipy import stats

from pipeline.experiment_file import experiment_toml, load_experiment
from pipeline.folder import Folder
from pipeline.ledger import Ledger, reading_of
from pipeline.run import Run

ROOT = Path(__file__).parents[2]
FILE = ROOT / "jobs/experiments/digits-search.toml"
TRIALS = 16
SEEDS = range(1, 6)
IMAGES, LATENTS = 10_000, 7  # that trainings are compared with: a set that no search has used
WAYS = {
    "random": ["search.searcher=random", "search.scheduler=none"],
    "ASHA": ["search.searcher=random", "search.scheduler=asha"],
    "PBT": ["search.searcher=random", "search.scheduler=pbt"],
    "TPE + ASHA": ["search.searcher=tpe", "search.scheduler=asha"],
}


def forger(*words: str, folder: Path) -> float:
    """Runs a forger command in a folder; wall seconds."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jobs", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return time.perf_counter() - started


def anytime(ledger: Ledger) -> list[tuple[int, float]]:
    """(images that all trials had seen, best score so far) at each evaluation, as time went by."""
    lines = []
    for trial in ledger.trials():
        if ledger.has_run(trial):
            before = trial.from_nimg
            for line in ledger.run_of(trial).journal(after=trial.from_nimg):
                lines.append((line.time_ms, line.nimg - before, reading_of(line)))
                before = line.nimg
    seen, best, found = 0, float("inf"), []
    for _, nimg, reading in sorted(lines, key=lambda each: each[0]):
        seen += nimg
        if reading is not None:
            best = min(best, reading.values["fd"])
            found.append((seen, best))
    return found


def compare(data: str, folder: Path, *, seed: int = 0) -> None:
    """The table of MEASUREMENTS.md."""
    total = TRIALS * load_experiment(FILE).experiment.turns.total_kimg
    curves, finals, trials = {}, {}, {}
    for way, overrides in WAYS.items():
        name = f"{way.lower().replace(' + ', '-')}-{seed}"
        size = TRIALS if way in ("random", "PBT") else 4 * TRIALS
        words = [f"search.name={name}", f"search.trials={size}", f"search.seed={seed}"]
        words += [f"data.shards={data}", f"search.budget_kimg={total}", "search.parallel=2"]
        forger("search", str(FILE), *overrides, *words, folder=folder)
        ledger = Ledger.at(Folder(folder / "runs" / name))
        curves[way], trials[way] = anytime(ledger), ledger.trials()
        finals[way] = (ledger.result or {})["finalists"][0]
    goal = curves["random"][-1][1]
    print(f"search seed {seed}, {total:g} kimg each")
    print("| search | trials (cut) | kimg in all | best fd_digits_5k | judged again, 10k "
          "| kimg to random's best |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for way, curve in curves.items():
        reached = next(
            (f"{seen / 1000:.0f}" for seen, best in curve if best <= goal), "not reached"
        )
        cut = sum(trial.state in ("stopped", "diverged") for trial in trials[way])
        final = finals[way]
        print(f"| {way} | {len(trials[way])} ({cut}) | {curve[-1][0] / 1000:.0f} "
              f"| {curve[-1][1]:.3f} | {final['mean']:.3f} ± {final['error']:.3f} "
              f"| {reached} |", flush=True)  # fmt: skip


def seeds(data: str, folder: Path, name: str) -> None:
    """The winner of search `name` and the file's own settings, trained with five seeds each."""
    ledger = Ledger.at(Folder(folder / "runs" / name))
    winner = load_experiment(folder / "runs" / name / "best.toml").experiment
    base = dataclasses.replace(ledger.experiment, search=None)
    found: dict[str, list[float]] = {}
    for who, experiment in (("the file's own", base), (f"winner of {name}", winner)):
        jobs = []
        for seed in SEEDS:
            run = f"seed-{seed}-{'own' if experiment is base else name}"
            text = experiment_toml(experiment.replace("seed", seed).replace("name", run))
            (folder / f"{run}.toml").write_text(text)
            jobs.append(run)
        for first in range(0, len(jobs), 2):  # two at once, one core each
            commands = [
                [sys.executable, "-m", "jobs", "train", f"{run}.toml", f"data.shards={data}"]
                for run in jobs[first : first + 2]
            ]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            waiting = [subprocess.Popen(c, cwd=folder, env=environment) for c in commands]
            assert all(process.wait() == 0 for process in waiting)
        found[who] = [judged(Run.at(Folder(folder / "runs" / run)), data) for run in jobs]
    print("| settings | fd_digits_10k of five seeds | mean | 95 % interval |")
    print("|---|---|---|---|")
    for who, values in found.items():
        reach = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        mean = statistics.fmean(values)
        shown = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {who} | {shown} | {mean:.2f} | {mean - reach:.2f} to {mean + reach:.2f} |")
    own, best = found.values()
    welch = stats.ttest_ind(own, best, equal_var=False)
    print(f"difference {statistics.fmean(own) - statistics.fmean(best):.3f}, "
          f"Welch's 95 % interval {welch.confidence_interval()}")  # fmt: skip


def judged(run: Run, data: str) -> float:
    """Bias-corrected Frechet distance of a run's best generator, at latents that chose nothing."""
    from pipeline.dataset import open_shards
    from pipeline.finals import judge_again
    from pipeline.worker import job_of

    best = run.best()
    assert best is not None
    told = job_of(run, open_shards(data))
    _, reading = judge_again(told, best.folder, IMAGES, LATENTS, "")
    return reading["values"]["fd"]


def overhead(data: str, folder: Path, *, trials: int = 12) -> None:
    """Wall seconds of a search of trials of a minute against two bare loops of half of them."""
    overrides = [f"search.trials={trials}", "search.scheduler=none", "turns.total_kimg=60",
                 f"data.shards={data}", "search.parallel=2", "search.name=overhead"]  # fmt: skip
    begun = time.time()
    searched = forger("search", str(FILE), *overrides, folder=folder)
    ledger = Ledger.at(Folder(folder / "runs/overhead"))
    runs = [ledger.run_of(trial) for trial in ledger.trials()]
    lines = [list(run.journal()) for run in runs]
    first = min(line[0].time_ms / 1000 - line[0].seconds for line in lines)
    last = max(line[-1].time_ms / 1000 for line in lines)
    parts = [folder / f"bare-{part}.json" for part in range(2)]
    for part, file in enumerate(parts):
        experiments = [run.experiment.to_dict() for run in runs[part::2]]
        file.write_text(json.dumps([experiments, data]))
    started = time.perf_counter()
    bare = [subprocess.Popen([sys.executable, "-m", "tests.bench.search", "bare", str(file)],
                             cwd=ROOT) for file in parts]  # fmt: skip
    assert all(process.wait() == 0 for process in bare)
    loops = time.perf_counter() - started
    played = sum(trial.device_sec for trial in ledger.trials()) / 2
    print(f"bare loops {loops:.1f} s; search {searched:.1f} s, {searched / loops:.2f} times: "
          f"{first - begun:.1f} s to the first turn, {last - first:.1f} s of trials (playing "
          f"{played:.1f} s a core), {begun + searched - last:.1f} s for the final judgement, "
          f"the registration and the page; until the last tick {(last - begun) / loops:.2f} "
          f"times", flush=True)  # fmt: skip


def bare(file: Path) -> None:
    """Plays and judges experiments one after another, with nothing around them."""
    import torch

    from gan.game import Game
    from gan.loop import training
    from pipeline.dataset import open_shards
    from pipeline.experiment_file import experiment_from_dict
    from pipeline.extractors import configured_extractor
    from pipeline.judge import Judge
    from pipeline.loader import batches
    from pipeline.shards import ShardReader

    torch.set_num_threads(1)
    experiments, data = json.loads(file.read_text())
    shards = open_shards(data)
    for values in experiments:
        experiment = experiment_from_dict(values)
        game = Game(experiment.game, shards.sample, seed=experiment.seed)
        stream = batches(
            ShardReader(shards),
            seed=experiment.seed,
            batch_size=experiment.turns.batch_size,
            first_batch=0,
            world=game.world,
        )
        extractor = configured_extractor(experiment.evaluate, shards.sample.shape)
        cache = Folder(file.with_suffix(""))  # the reals are looked at once, as in a search
        judge = Judge(extractor, shards, cache=cache)
        total, before = experiment.turns.total_nimg, 0
        for tick in training(game, stream, until_nimg=total, tick_nimg=experiment.tick_nimg):
            every = experiment.evaluate_nimg
            if tick.nimg // every > before // every or tick.nimg >= total:
                judge.score(
                    game.G_ema,
                    latent_dim=experiment.generator.latent_dim,
                    conditioning=experiment.conditioning.name,
                    images=experiment.evaluate.images,
                )
            before = tick.nimg


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "bare":
        bare(Path(words[0]))
    else:
        where = Path(words[1])
        where.mkdir(parents=True, exist_ok=True)
        rest = words[2:]
        data = str(Path(words[0]).resolve())
        if what == "compare":
            compare(data, where, seed=int(rest[0]) if rest else 0)
        elif what == "seeds":
            seeds(data, where, rest[0])
        else:
            overhead(data, where)

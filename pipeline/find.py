"""A generator by the names that people use: a registry URI, a run, or a snapshot's folder."""

from __future__ import annotations

from gan.config import ConfigError
from pipeline.card import CARD
from pipeline.run import RECORD, Run
from pipeline.snapshot import Snapshot, read_snapshot
from pipeline.storage import open_storage


def find_generator(name: str, *, storage: str) -> Snapshot:
    """The generator that `name` means; runs and the local registry are looked for below `storage`.

    Raises ConfigError where there is none.
    """
    if name.startswith("models:/"):
        from pipeline.backend import backend
        from pipeline.registry import load_registered

        return load_registered(backend(storage), name)
    places = [name] if "://" in name else [name, f"{storage}/{name}"]
    for place in map(open_storage, places):
        if place.exists(CARD):
            return read_snapshot(place, ".")
        if place.exists(RECORD):
            run = Run.at(place)
            best = run.best()
            if best is None:
                raise ConfigError([f"run {name} has no snapshot yet; it is judged first at "
                                   f"{run.experiment.evaluate_nimg / 1000:g} kimg"])  # fmt: skip
            return read_snapshot(run.storage, best.folder)
    raise ConfigError(
        [
            f"MODEL must be models:/NAME@champion, models:/NAME-candidates@candidate (or "
            f"/VERSION for @...), a run below {storage}, which `forger runs` lists, or the "
            f"place of a snapshot, got {name!r}"
        ]
    )

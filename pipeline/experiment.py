"""One TOML file to one checked Experiment, with every mistake reported at once."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gan.config import (
    ConditioningConfig,
    ConfigError,
    DiscriminatorConfig,
    EmaConfig,
    GameConfig,
    GeneratorConfig,
    ObjectiveConfig,
    Schedule,
    TurnsConfig,
    check,
)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PLACEHOLDERS = {"name": "unnamed", "data.shards": "unknown"}  # while the other mistakes are looked for


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which prepared data set is played on."""

    shards: str = ""  # the folder that `forger prepare` filled

    def __post_init__(self) -> None:
        check((bool(self.shards), "shards must name the folder that `forger prepare` filled, got ''"))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How G_ema is judged: Frechet distance and KID on features, against the whole data set."""

    every_kimg: float | None = None  # a tenth of the run where left out; the end is always judged
    images: int = 5000
    extractor: str = "pixels"  # 'digits', 'pixels', or the folder that `forger extractor train` made
    metric: Literal["fd", "kid"] = "fd"  # picks the best snapshot; smaller is better

    def __post_init__(self) -> None:
        check(
            _positive("every_kimg", self.every_kimg),
            (2 <= self.images <= 10**7, f"images must be between 2 and 10^7, got {self.images}"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often all that resuming needs is published, and how many are kept."""

    every_kimg: float | None = None  # a twentieth of the run where left out
    keep: int = 2

    def __post_init__(self) -> None:
        check(
            _positive("every_kimg", self.every_kimg),
            (self.keep >= 1, f"keep must be >= 1, got {self.keep}"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """How often the game is reported, and where the best generator is registered."""

    tick_kimg: float | None = None  # a hundredth of the run where left out
    experiment: str | None = None  # MLflow's experiment; the experiment's name where left out
    model: str | None = None  # MLflow's registered model; the experiment's name where left out

    def __post_init__(self) -> None:
        check(_positive("tick_kimg", self.tick_kimg))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """On what the game is played; nothing here changes the weights, but by rounding."""

    workers: int = 1
    cpus_per_worker: int = 1  # also the threads that torch may use in each
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU each where Ray has that many
    storage: str = "runs"  # runs live below it; a folder that every node sees
    max_failures: int = 3  # lost workers that are replaced before the run gives up

    def __post_init__(self) -> None:
        check(
            (1 <= self.workers <= 4096, f"workers must be between 1 and 4096, got {self.workers}"),
            (self.cpus_per_worker >= 1, f"cpus_per_worker must be >= 1, got {self.cpus_per_worker}"),
            (bool(self.storage), "storage must name a folder, got ''"),
            (self.max_failures >= 0, f"max_failures must be >= 0, got {self.max_failures}"),
        )


def _positive(name: str, kimg: float | None) -> tuple[bool, str]:
    return kimg is None or 0 < kimg < math.inf, f"{name} must be > 0, got {kimg}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that one run is: the game, its data, and how it is run, judged and tracked."""

    name: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        check(
            (
                bool(NAME.fullmatch(self.name)),
                f"name must be 1 to 63 of a-z, 0-9 and '-', got {self.name!r}",
            ),
            (0 <= self.seed < 2**63, f"seed must be in [0, 2^63), got {self.seed}"),
            (
                self.turns.batch_size >= self.cluster.workers,
                f"turns.batch_size must be at least cluster.workers (each worker needs an image), "
                f"got {self.turns.batch_size} for {self.cluster.workers} workers",
            ),
        )
        _ = self.game  # its own rules hold too

    @property
    def game(self) -> GameConfig:
        """The rules of the game, without the data, the seed and the cluster."""
        return GameConfig(
            generator=self.generator,
            discriminator=self.discriminator,
            objective=self.objective,
            conditioning=self.conditioning,
            turns=self.turns,
            ema=self.ema,
        )

    @property
    def tick_nimg(self) -> int:
        """Images between two reports."""
        return self._cadence(self.tracking.tick_kimg, 100)

    @property
    def checkpoint_nimg(self) -> int:
        """Images between two checkpoints."""
        return self._cadence(self.checkpoint.every_kimg, 20)

    @property
    def evaluate_nimg(self) -> int:
        """Images between two evaluations."""
        return self._cadence(self.evaluate.every_kimg, 10)

    def _cadence(self, kimg: float | None, times: int) -> int:
        return max(1, round(self.turns.total_nimg / times if kimg is None else kimg * 1000))

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name; schedules spread into their parts."""
        return dict(_leaves(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the TOML file would hold them; `from_dict` takes them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """The experiment of nested plain values. Raises ConfigError naming every mistake."""
        return _validated(dict(values), sources={})

    def replace(self, key: str, value: Any) -> Experiment:
        """The experiment with one setting changed, by its dotted name."""
        values = self.to_dict()
        _put(values, key, value)
        return Experiment.from_dict(values)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that the trajectory depends on: what a resumed run must not change."""
        parts = ("name", "seed", "data", "generator", "discriminator", "objective", "conditioning", "turns", "ema")
        values = self.to_dict()
        identity = dict(_leaves({part: values[part] for part in parts}))
        for moved in ("data.shards", "turns.micro_batch"):  # the digest of the data counts, not its place
            identity.pop(moved)
        return identity

    @property
    def digest(self) -> str:
        """sha256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Loaded:
    """An experiment, and for each setting that is not a default where it came from."""

    experiment: Experiment
    sources: dict[str, str]


def load_experiment(path: str | Path, overrides: Iterable[str] = ()) -> Loaded:
    """Reads an experiment file, what it extends, and `key=value` overrides.

    Raises one ConfigError with all mistakes, each with its file and key.
    """
    values, sources = _read(Path(path), seen=())
    values.setdefault("name", Path(path).stem)
    mistakes = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            mistakes.append(f"an override is key=value, such as turns.total_kimg=100, got {override!r}")
            continue
        _put(values, key.strip(), _parse_value(text.strip()))
        for old in [old for old in sources if old == key or old.startswith(key + ".")]:
            del sources[old]
        sources[key.strip()] = "command line"
    experiment = _validated(values, sources=sources, mistakes=mistakes)
    return Loaded(experiment, sources)


def _read(path: Path, *, seen: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    resolved = path.expanduser().resolve()
    if resolved in seen:
        raise ConfigError([f"{path}: extends itself by way of {seen[-1].name}"])
    try:
        values = tomllib.loads(resolved.read_text())
    except FileNotFoundError:
        raise ConfigError([f"there is no experiment file {path}"]) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as TOML: {error}"]) from None
    merged, sources = {}, {}
    parent = values.pop("extends", None)
    if parent is not None:
        if not isinstance(parent, str):
            raise ConfigError([f"{path}: extends must name another experiment file, got {parent!r}"])
        merged, sources = _read(resolved.parent / parent, seen=(*seen, resolved))
    for key, value in _leaves(values):
        _put(merged, key, value)
        sources[key] = path.name
    return merged, sources


def _parse_value(text: str) -> Any:
    """A TOML value, or the bare words themselves: objective.name=minimax needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    values[last] = value


def _drop(values: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.get(section, {})
        if not isinstance(values, dict):
            return
    values.pop(last, None)


@cache
def _settings(section: type = Experiment, prefix: str = "") -> dict[str, Any]:
    """Every setting's dotted name, with its type."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        inner = [t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)]
        if not inner or get_args(hint):
            found[f"{prefix}{name}"] = hint
        for nested in inner:
            assert isinstance(nested, type)
            found |= _settings(nested, f"{prefix}{name}.")
    return found


@cache
def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _validated(
    values: dict[str, Any], *, sources: Mapping[str, str], mistakes: Iterable[str] = ()
) -> Experiment:
    """The checked experiment; on a mistake the rest is still checked, and all are raised together."""
    said = list(mistakes)
    values = json.loads(json.dumps(values, default=str))
    bad = _drop_unknown(values, sources=sources, said=said)
    while True:
        try:
            experiment = _adapter().validate_json(json.dumps(values), strict=True)
            break
        except ValidationError as error:
            found = _readable(error, values)
            fresh = [(key, text) for key, text in found if key not in bad]
            for key, text in fresh:
                if not any(old in text for old in bad if old):  # a rule that looks at a dropped value
                    said.append(_placed(key, text, sources))
                bad.add(key)
                _drop(values, key)
            for key in bad & PLACEHOLDERS.keys():
                _put(values, key, PLACEHOLDERS[key])
            if not fresh:
                raise ConfigError(said) from None
    if said:
        raise ConfigError(said)
    return experiment


def _drop_unknown(
    values: dict[str, Any], *, sources: Mapping[str, str], said: list[str]
) -> set[str]:
    settings = _settings()
    sections = {key.rpartition(".")[0] for key in settings}
    bad = set()
    for key, _ in list(_leaves(values)):
        if key in settings or (key in sections and key):
            continue
        near = difflib.get_close_matches(key, settings, n=1, cutoff=0.6)
        last = key.rpartition(".")[2]
        near = near or [s for s in settings if s.rpartition(".")[2] == last][:1]
        hint = f"; did you mean {near[0]}?" if near else ""
        said.append(_placed(key, f"{key} is not a setting{hint}", sources))
        bad.add(key)
        _drop(values, key)
    return bad


def _readable(error: ValidationError, values: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, message) of each mistake, in the words of the file."""
    found: dict[str, tuple[str, str]] = {}
    settings = _settings()
    for detail in error.errors():
        loc = [str(part) for part in detail["loc"]]
        broken = detail.get("ctx", {}).get("error")
        if isinstance(broken, ConfigError):
            section = ".".join(part for part in loc if part not in ("Schedule",))
            for mistake in broken.mistakes:
                field_name = re.match(r"[\w.]+", mistake)
                name = field_name.group() if field_name else ""
                full = f"{section}.{name}" if f"{section}.{name}" in settings else name
                text = f"{section}.{mistake}" if section and full != name else mistake
                found[full + text] = (full if full in settings else section, text)
            continue
        while loc and ".".join(loc) not in settings:
            loc.pop()
        key = ".".join(loc) or ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "missing":
            found.setdefault(key, (key, f"{key} must be given"))
        else:
            got = _get(values, key)
            found.setdefault(key, (key, f"{key} must be {_expected(settings.get(key))}, got {got!r}"))
    return list(found.values())


def _get(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _expected(hint: Any) -> str:
    """A type in the words of a TOML file."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): ""}
    if hint in words:
        return words[hint]
    if hint is Schedule:
        return "a schedule such as { start = 2e-4, end = 5e-5 }"
    options = get_args(hint)
    if options and all(isinstance(option, str) for option in options):
        return "one of " + ", ".join(f"'{option}'" for option in options)
    return " or ".join(word for option in options if (word := _expected(option))) or "a table"


def _placed(key: str, text: str, sources: Mapping[str, str]) -> str:
    source = next(
        (s for k, s in sources.items() if (key + ".").startswith(k + ".") or k.startswith(key + ".")),
        None,
    )
    return f"{source}: {text}" if source else text

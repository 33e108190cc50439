"""What one run is: every setting as frozen dataclasses, checked whoever makes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from gan.config import (
    AugmentConfig,
    ConditioningConfig,
    DiscriminatorConfig,
    EmaConfig,
    GameConfig,
    GeneratorConfig,
    ObjectiveConfig,
    TurnsConfig,
    check,
)
from pipeline.data_config import DataConfig
from pipeline.identity import as_at_first, leaves
from pipeline.search_config import SearchConfig

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
SHA256 = re.compile(r"[0-9a-f]{64}")
OWN_WEIGHTS = ("pixels", "digits", "lite0")  # extractors that take none from elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """How G_ema is judged: Frechet distance and KID on features, against the whole data set."""

    every_kimg: float | None = None  # a tenth of the run where left out; the end is always judged
    images: int = 5000  # that G_ema draws for each judgement
    # 'pixels', 'digits', 'lite0', 'inception', one of an installed package, or the folder that
    # `forger extractor train` made; `forger extractor list` says what is there.
    extractor: str = "pixels"
    weights: str | None = None  # file or URI, for the extractors that have no weights of their own
    weights_sha256: str | None = None  # of that file; the official one for 'inception' if left out
    metric: Literal["fd", "kid"] = "fd"  # picks the best snapshot; smaller is better

    def __post_init__(self) -> None:
        check(
            _positive("every_kimg", self.every_kimg),
            (2 <= self.images <= 10**7, f"images must be between 2 and 10^7, got {self.images}"),
            *self._weights_rules(),
        )

    def _weights_rules(self) -> list[tuple[bool, str]]:
        given, checksum = self.weights is not None, self.weights_sha256
        inception = self.extractor == "inception"
        return [
            (bool(self.extractor), "extractor must not be empty"),
            (self.weights != "", "weights must name a file or a URI, got ''"),
            (
                not given or self.extractor not in OWN_WEIGHTS,
                f"weights must be left out for extractor = {self.extractor!r}, which has its own, "
                f"got {self.weights!r}",
            ),
            (
                given or not inception,
                "weights must name the file or URI of pt_inception-2015-12-05-6726825d.pth for "
                "extractor = 'inception', got none",
            ),
            (
                not given or inception or checksum is not None,
                "weights_sha256 must state the checksum of weights (sha256sum FILE), got none",
            ),
            (
                given or inception or checksum is None,
                f"weights_sha256 must be left out without weights, got {checksum!r}",
            ),
            (
                checksum is None or bool(SHA256.fullmatch(checksum)),
                f"weights_sha256 must be 64 of 0-9 and a-f, got {checksum!r}",
            ),
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often all that resuming needs is published, and how many are kept.

    Those by the clock bound what a lost worker costs. Beside both there is one wherever the game
    was judged and found sound: an anchor, to which a watchdog may go back.
    """

    every_kimg: float | None = None  # a twentieth of the run where left out
    every_sec: float = 60.0  # by the clock
    keep: int = 2  # the newest; beside them the newest and the best anchor

    def __post_init__(self) -> None:
        check(
            _positive("every_kimg", self.every_kimg),
            (self.every_sec > 0, f"every_sec must be > 0, got {self.every_sec}"),
            (self.keep >= 1, f"keep must be >= 1, got {self.keep}"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchdogConfig:
    """What is done about a game that is lost: diverging, or collapsing after it was well.

    "warn" says so, and ends the run only where numbers are not finite any more or have exploded;
    "stop" ends it in either case; "rollback" goes back to the last checkpoint of a sound game, and
    on with smaller learning rates and the images in another order.
    """

    action: Literal["warn", "stop", "rollback"] = "warn"
    max_rollbacks: int = 3
    lr_factor: float = 0.5  # for each rollback, on both players' learning rates
    new_order: bool = True

    def __post_init__(self) -> None:
        check(
            (
                0 <= self.max_rollbacks <= 100,
                f"max_rollbacks must be between 0 and 100, got {self.max_rollbacks}",
            ),
            (0 < self.lr_factor <= 1, f"lr_factor must be in (0, 1], got {self.lr_factor}"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """How often the game is reported, and where the best generator is registered."""

    tick_kimg: float | None = None  # a hundredth of the run where left out
    experiment: str | None = None  # MLflow's experiment; the experiment's name where left out
    model: str | None = None  # MLflow's registered model; the experiment's name where left out

    def __post_init__(self) -> None:
        named = [("experiment", self.experiment), ("model", self.model)]
        check(
            _positive("tick_kimg", self.tick_kimg),
            *(
                (
                    not value or not set(value) & set("/:"),
                    f"{key} must not hold '/' or ':', got {value!r}",
                )
                for key, value in named
                if value is not None
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """On what the game is played; nothing here changes the weights, but by rounding."""

    workers: int | tuple[int, int] = 1  # a pair: at least and at most, as there is room for
    cpus_per_worker: int = 1  # also the threads that torch may use in each
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU each where Ray has that many
    deterministic: bool = False  # GPUs: kernels with the same bits each time, some of them slower
    storage: str = "runs"  # runs live below it: a folder that every node sees, or s3://
    max_failures: int = 3  # failures in a row without progress, until the run gives up
    hang_sec: float = 300.0  # a worker without progress for so long is replaced

    def __post_init__(self) -> None:
        pair = [self.workers] * 2 if isinstance(self.workers, int) else list(self.workers)
        check(
            (
                len(pair) == 2 and 1 <= pair[0] <= pair[1] <= 4096,
                f"workers must be between 1 and 4096, or a pair [least, most] of such, "
                f"got {self.workers if isinstance(self.workers, int) else pair}",
            ),
            (
                self.cpus_per_worker >= 1,
                f"cpus_per_worker must be >= 1, got {self.cpus_per_worker}",
            ),
            (bool(self.storage), "storage must name a folder or s3://bucket/prefix, got ''"),
            (self.max_failures >= 0, f"max_failures must be >= 0, got {self.max_failures}"),
            (self.hang_sec > 0, f"hang_sec must be > 0, got {self.hang_sec}"),
        )
        if not isinstance(self.workers, int):
            object.__setattr__(self, "workers", tuple(pair))

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run is played with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the run is played with."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


def _positive(name: str, kimg: float | None) -> tuple[bool, str]:
    return kimg is None or 0 < kimg < math.inf, f"{name} must be > 0, got {kimg}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything that one run is: the game, its data, and how it is run, judged and tracked."""

    name: str  # of the run and its folder
    seed: int = 0  # of every sample, latent and weight
    data: DataConfig = field(default_factory=DataConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    search: SearchConfig | None = None  # None for a single run: a trial, `forger train`

    def __post_init__(self) -> None:
        check(
            (
                bool(NAME.fullmatch(self.name)),
                f"name must be 1 to 63 of a-z, 0-9 and '-' and not begin with '-', "
                f"got {self.name!r}",
            ),
            (
                bool(self.data.shards),
                "data.shards must name the folder that `forger prepare` filled, got ''",
            ),
            (0 <= self.seed < 2**63, f"seed must be in [0, 2^63), got {self.seed}"),
            (
                self.turns.batch_size >= self.cluster.max_workers,
                f"turns.batch_size must be at least cluster.workers (each worker needs an image), "
                f"got {self.turns.batch_size} for {self.cluster.max_workers} workers",
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
            augment=self.augment,
        )

    @property
    def search_name(self) -> str:
        """What a search of it is called, and its folder."""
        return (self.search and self.search.name) or f"{self.name}-search"

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
        """Every setting of the run by its dotted name, without the search; schedules spread into
        their parts.
        """
        return dict(leaves(dataclasses.replace(self, search=None).to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the TOML file would hold them; no 'search' where it is None."""
        values = dataclasses.asdict(self)
        if self.search is None:
            del values["search"]
        return values

    def replace(self, key: str, value: Any) -> Experiment:
        """The experiment with one setting changed, by its dotted name.

        Raises ConfigError as ever.
        """
        return _replaced(self, key.split("."), value)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that the trajectory depends on: what a resumed run must not change."""
        parts = (
            "name",
            "seed",
            "data",
            "generator",
            "discriminator",
            "objective",
            "conditioning",
            "turns",
            "ema",
            "augment",
        )
        values = self.to_dict()
        identity = as_at_first({part: values[part] for part in parts})
        for key in self.data.without_effect:  # the digest of the data counts, not its place
            identity.pop(f"data.{key}")
        if self.watchdog.action == "rollback":  # its remedies are part of the trajectory
            identity |= dict(leaves({"watchdog": values["watchdog"]}))
        if self.generator.norm != "batch" and not self.discriminator.sees_batches:
            identity.pop("turns.micro_batch")  # else the statistics depend on it
        return identity

    @property
    def digest(self) -> str:
        """sha256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


def _replaced(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    new = _replaced(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: new})

"""An experiment on the stripes that plays a round in milliseconds, for tests of `forger check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gan.config import DiscriminatorConfig, GeneratorConfig, TurnsConfig
from pipeline.data_config import DataConfig
from pipeline.experiment import ClusterConfig, EvaluateConfig, Experiment


def small(shards: str, storage: Path, **sections: Any) -> Experiment:
    """A game for the stripes that plays a round in milliseconds."""
    return Experiment(
        name="stripes",
        data=sections.pop("data", DataConfig(shards=shards)),
        generator=sections.pop("generator", GeneratorConfig(width=8, latent_dim=4)),
        discriminator=sections.pop("discriminator", DiscriminatorConfig(width=8)),
        turns=sections.pop("turns", TurnsConfig(batch_size=8, total_kimg=1)),
        evaluate=EvaluateConfig(extractor="pixels", images=50),
        cluster=ClusterConfig(storage=str(storage), device="cpu"),
        **sections,
    )

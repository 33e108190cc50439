"""ONNX models of every network family: any number of latents in, torch's images out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch

from gan.config import GeneratorConfig, Network, Sample
from gan.networks import FAMILIES, build_generator
from pipeline.export import TOLERANCE, _program


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("network", FAMILIES)
def test_a_generator_of_any_family_takes_any_number_of_latents(network: Network, labelled: bool):
    config = GeneratorConfig(network=network, width=8, latent_dim=6)
    conditioning = "projection" if labelled else "none"
    generator = build_generator(
        config, conditioning=conditioning, sample=Sample((3, 16, 16), num_classes=3), seed=0
    ).eval()
    snapshot: Any = SimpleNamespace(module=generator)
    z, labels = torch.randn(16, 6), torch.arange(16) % 3
    program = _program(snapshot, z, labels if labelled else None)
    session = onnxruntime.InferenceSession(
        program.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (1, 5):
        z, labels = torch.randn(count, 6), torch.arange(count) % 3
        feed = {"z": z.numpy()} | ({"labels": labels.numpy()} if labelled else {})
        drawn = torch.from_numpy(session.run(None, feed)[0])
        with torch.no_grad():
            expected = generator(z, labels if labelled else None)
        torch.testing.assert_close(drawn, expected, rtol=0, atol=TOLERANCE)

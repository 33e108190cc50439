"""Stateless randomness: frozen where it must be, independent where it should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gan.config import ConfigError, GeneratorConfig, Sample
from gan.networks import build_generator
from gan.randomness import derive_seed, latents, public_labels, public_latents
from gan.sampling import BLOCK, classes_of, exact, grid, images_of, to_uint8
from gan.world import World


def test_streams_indices_and_seeds_are_apart():
    draws = [derive_seed(s, name, i) for s in range(5) for name in ("a", "b") for i in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= d < 2**63 for d in draws)


def test_latents_are_standard_normal_and_repeatable():
    z = latents(0, "latent/d", 7, batch_size=4000, latent_dim=4)
    assert torch.equal(z, latents(0, "latent/d", 7, batch_size=4000, latent_dim=4))
    assert abs(float(z.mean())) < 4 / 16000**0.5
    assert float(z.std()) == pytest.approx(1, abs=0.03)


def test_public_latents_are_numpys_frozen_stream():
    """The first normals of RandomState(0), as NumPy has always drawn them (NEP 19)."""
    z = public_latents(np.array([0, 1]), latent_dim=3)
    expected = [[1.76405235, 0.40015721, 0.97873798], [1.62434536, -0.61175641, -0.52817175]]
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-6)
    assert set(public_labels(np.arange(200), num_classes=3).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("count", "size"), [(8, 1), (8, 3), (2, 2), (100, 7)])
def test_shares_cover_the_batch_once_and_differ_by_one_at_most(count, size):
    shares = [range(count)[World(rank, size).share(count)] for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def generator(classes: int = 0):
    return build_generator(
        GeneratorConfig(width=8, latent_dim=6),
        conditioning="projection" if classes else "none",
        sample=Sample((1, 8, 8), classes),
        seed=0,
    ).eval()


def test_a_seed_gives_the_same_image_whatever_else_is_drawn():
    G = exact(generator())
    together = images_of(G, [3, 1, 4, 1], latent_dim=6)
    alone = images_of(G, [4], latent_dim=6)
    assert torch.equal(together[2], alone[0])
    assert torch.equal(together[1], together[3])


def drawn_anew(G: torch.nn.Module, *, block: int, threads: int, onednn: bool) -> torch.Tensor:
    """32 raw images, values in [-1, 1], by another route through the CPU's kernels."""
    z, before = public_latents(np.arange(32), latent_dim=16), torch.get_num_threads()
    dtype = next(G.parameters()).dtype
    torch.set_num_threads(threads)
    try:
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=onednn):
            parts = [G(z[i : i + block].to(dtype), None) for i in range(0, 32, block)]
        return torch.cat(parts)
    finally:
        torch.set_num_threads(before)


def test_bytes_are_the_same_by_every_route_in_float64_and_only_there():
    """Threads, batch sizes and oneDNN choose other kernels, as another CPU does."""
    config = GeneratorConfig(width=16, latent_dim=16)
    sample = Sample((3, 32, 32))
    G = build_generator(config, conditioning="none", sample=sample, seed=0).eval()
    routes = [
        {"block": block, "threads": threads, "onednn": onednn}
        for block in (1, BLOCK, 32)
        for threads in (1, 2)
        for onednn in (True, False)
    ]
    single = [drawn_anew(G, **route) for route in routes]
    double = [drawn_anew(exact(G), **route) for route in routes]
    spread_single = max((other - single[0]).abs().max().item() for other in single)
    spread_double = max((other - double[0]).abs().max().item() for other in double)
    assert 1e-8 < spread_single < 1e-4
    assert spread_double < 1e-13
    drawn = images_of(exact(G), range(32), latent_dim=16)
    assert all(torch.equal(to_uint8(other), drawn) for other in double)


ANOTHER_CPU = """
import sys
import numpy as np, safetensors.torch, torch
from gan.config import GeneratorConfig, Sample
from gan.networks import build_generator
from gan.sampling import exact, images_of
torch.set_num_threads(1)
config = GeneratorConfig(width=32, latent_dim=64)
G = build_generator(config, conditioning="none", sample=Sample((3, 32, 32)), seed=0).eval()
G.load_state_dict(safetensors.torch.load_file(sys.argv[1]))
images = [images_of(module, range(500), latent_dim=64).numpy() for module in (exact(G), G)]
np.savez(sys.argv[2], double=images[0], single=images[1])
"""


@pytest.mark.slow
def test_bytes_are_the_same_on_a_cpu_without_vector_units_in_float64_and_only_there(tmp_path):
    """The kernels of a CPU of 2008, by the variables with which the libraries choose theirs."""
    config, sample = GeneratorConfig(width=32, latent_dim=64), Sample((3, 32, 32))
    G = build_generator(config, conditioning="none", sample=sample, seed=0)
    # From a file: the initial weights themselves differ, since torch.randn uses these kernels too.
    state = {name: value.contiguous() for name, value in G.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "G.safetensors")
    old = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    old |= {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "MKL_CBWR": "COMPATIBLE"}
    drawn = []
    for name, variables in (("here", {}), ("there", old)):
        command = [sys.executable, "-c", ANOTHER_CPU, "G.safetensors", f"{name}.npz"]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables
        subprocess.run(command, cwd=tmp_path, env=env, check=True)
        drawn.append(np.load(tmp_path / f"{name}.npz"))
    here, there = drawn
    np.testing.assert_array_equal(here["double"], there["double"])
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        differ = (here["single"] != there["single"]).any(axis=(1, 2, 3))
        assert 0 < differ.mean() < 0.5  # 5.6 % of 5,000 when this was written


def test_an_exact_copy_leaves_the_generator_as_it_was():
    G = generator()
    copied = exact(G)
    assert next(copied.parameters()).dtype == torch.float64
    assert next(G.parameters()).dtype == torch.float32
    assert next(G.parameters()).requires_grad


def test_truncation_zero_is_the_mean_latent_and_one_changes_nothing():
    G = exact(generator())
    flat = images_of(G, [1, 2], latent_dim=6, truncation=0.0)
    assert torch.equal(flat[0], flat[1])
    assert torch.equal(flat[0], to_uint8(G(torch.zeros(1, 6).double(), None))[0])
    assert torch.equal(
        images_of(G, [1], latent_dim=6), images_of(G, [1], latent_dim=6, truncation=[1.0])
    )


def test_labels_are_honoured_or_picked_by_the_seed():
    G = exact(generator(3))
    picked = int(public_labels(np.array([5]), num_classes=3))
    assert classes_of([5, 5], num_classes=3, labels=[None, 2]) == [picked, 2]
    assert classes_of([5], num_classes=0) is None
    drawn = images_of(G, [5, 5], latent_dim=6, num_classes=3, labels=[None, picked])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(
        drawn[0], images_of(G, [5], latent_dim=6, num_classes=3, labels=[(picked + 1) % 3])[0]
    )


def test_requests_out_of_range_are_refused_with_every_reason():
    with pytest.raises(ConfigError) as caught:
        images_of(generator(), [-1], latent_dim=6, labels=[2], truncation=1.5)
    assert [m.split()[0] for m in caught.value.mistakes] == ["seed", "truncation", "this"]
    with pytest.raises(ConfigError, match="2 seeds need as many labels, got 1"):
        images_of(generator(3), [0, 1], latent_dim=6, num_classes=3, labels=[0])
    with pytest.raises(ConfigError, match="between 0 and 2, got 3"):
        images_of(generator(3), [0], latent_dim=6, num_classes=3, labels=[3])


def test_bytes_are_rounded_and_clipped():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).view(5, 1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 255, 255]


def test_a_grid_puts_images_row_by_row():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1) * 10 + 100
    page = grid(images, columns=3)
    assert page.shape == (5, 7, 1)
    assert page[1, 1::2, 0].tolist() == [100, 110, 120]
    assert page[3, 1:4:2, 0].tolist() == [130, 140]

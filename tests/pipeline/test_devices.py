"""Runs, scores and features on a device that is not the CPU: they are the CPU's."""

from __future__ import annotations

import os

import pytest
import torch

from pipeline import mode_games
from pipeline.devices import device_here
from pipeline.extraction import Eye, Features, extract, forgeries, here, reals
from pipeline.play import play
from pipeline.run import Run
from pipeline.shards import write_shards
from tests.conftest import striped_images
from tests.elsewhere import ELSEWHERE, VARIES_ON_GPUS, elsewhere
from tests.gan.play import TOLERANCE
from tests.pipeline.test_extraction import snapshot_for
from tests.pipeline.test_mode_games import small
from tests.pipeline.test_play import curve, small_experiment, weights


def test_a_run_is_played_judged_and_kept(stripes, tmp_path):
    """Its generators, too, are equal to rounding: every score is of what they draw."""

    def played(name: str, device: str) -> Run:
        how = {"name": name, "turns__precision": "float64", "data__flip": True}
        run = Run.open(name, small_experiment(stripes, tmp_path, **how), stripes)
        assert play(run, stripes, device=device).finished
        return run

    here = played("here", "cpu")
    with elsewhere() as seen:
        there = played("there", ELSEWHERE)
    assert not seen.operations & VARIES_ON_GPUS
    ours, theirs = weights(here), weights(there)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=TOLERANCE["float64"])
    for (nimg, ticked, picture), other in zip(curve(here), curve(there), strict=True):
        assert (nimg, picture) == (other[0], other[2])
        assert ticked == pytest.approx(other[1], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("users_own", [None, ":16:8"])
def test_the_same_bits_each_time_are_a_matter_of_the_device(
    stripes, tmp_path, monkeypatch, users_own
):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # so that it is put back at the end
    if users_own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    how = {"cluster__deterministic": True, "cluster__storage": str(tmp_path / "runs")}
    run = Run.open("small", small_experiment(stripes, tmp_path, **how), stripes)
    try:
        play(run, stripes, until_nimg=16)
        assert not torch.are_deterministic_algorithms_enabled()  # a CPU's are
        with elsewhere():
            play(run, stripes, device=ELSEWHERE, until_nimg=32)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (users_own or ":4096:8")
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore


@pytest.mark.parametrize("extractor", ["pixels", "digits"])
def test_the_features_by_which_commands_judge_are_the_same(tmp_path, extractor):
    images = striped_images(100, size=32)
    shards = write_shards(str(tmp_path / "data"), images, classes=("left", "right"), origin={})

    def looked(name: str) -> list[Features]:
        snapshot, eye, storage = snapshot_for(shards), Eye(extractor=extractor), tmp_path / name
        how = {"stream": "a", "seed": 0, "storage": str(storage)}
        looks = reals(eye, shards, storage=str(storage)), forgeries(snapshot, eye, shards, **how)
        return [extract(look, images=100, each=here) for look in looks]

    ours = looked("here")
    with elsewhere() as seen, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.extraction.device_here", lambda: ELSEWHERE)
        theirs = looked("there")
    assert not seen.operations & VARIES_ON_GPUS
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other.vectors, one.vectors, rtol=1e-5, atol=1e-5)
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)


def test_modes_of_stacks_and_points_are_counted_there():
    exact = small(0.5, precision="float64")
    with elsewhere():
        points = mode_games.play("ring", exact, seed=3, device=ELSEWHERE)
        named = mode_games.StackMixture(ELSEWHERE)
        stacks = named.draw(100, torch.Generator().manual_seed(0))
        assert named.modes(stacks) == mode_games.StackMixture().modes(stacks)
    at_home = mode_games.play("ring", exact, seed=3)
    torch.testing.assert_close(points.samples, at_home.samples, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("wanted", "there_is_one", "device"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_a_process_takes_the_gpu_it_sees_but_where_the_cpu_is_wanted(
    monkeypatch, wanted, there_is_one, device
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: there_is_one)
    assert device_here(wanted) == device

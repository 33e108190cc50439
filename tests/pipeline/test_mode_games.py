"""Games on mixtures of known modes: what real samples show, and short games."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner

from gan.config import (
    ConfigError,
    DiscriminatorConfig,
    EmaConfig,
    GameConfig,
    GeneratorConfig,
    Precision,
    TurnsConfig,
)
from gan.modes import Modes
from jobs.__main__ import forger
from pipeline import kept_course
from pipeline.mode_games import PointMixture, StackMixture, floor, play
from tests.pipeline.desk import ROOT, Desk, clean_environment
from tests.pipeline.servers import DEADLINE_SEC


def small(total_kimg: float = 2.0, *, precision: Precision = "float32") -> GameConfig:
    how: dict = {"network": "mlp", "width": 32, "lr": 1e-3}
    return GameConfig(
        generator=GeneratorConfig(latent_dim=4, **how),
        discriminator=DiscriminatorConfig(**how),
        turns=TurnsConfig(total_kimg=total_kimg, batch_size=50, precision=precision),
        ema=EmaConfig(half_life_kimg=0.5),
    )


@pytest.mark.parametrize(("name", "count"), [("ring", 8), ("grid", 25)])
def test_real_points_find_every_mode(name, count):
    """98.89 % lie within 3 sigma; the standard error of 2,500 is 0.2 %."""
    modes = floor(name)
    assert modes.found == count
    assert modes.good == pytest.approx(0.9889, abs=0.008)
    assert modes.reverse_kl < 3 * count / 2 / 2500


def test_stacks_are_of_three_digits_and_few_of_them_show_few_modes():
    source = StackMixture()
    stacks = source.draw(300, torch.Generator().manual_seed(0))
    assert stacks.shape == (300, 3, 32, 32)
    modes = source.modes(stacks)
    assert 230 <= modes.found <= 300  # 1000 (1 - e^-0.3) = 259 are expected, with a deviation of 5
    assert 0.5 < modes.good < 0.8  # the classifier is careful: sure of seven in eight digits
    assert source.modes(torch.zeros(50, 3, 32, 32, dtype=torch.uint8)).found == 1


@pytest.mark.slow
def test_real_stacks_find_every_mode_and_have_little_but_the_bias_of_their_number():
    """KL of 26,000 draws from 1,000 even modes is 999 / 52,000 = 0.019 on average; a classifier
    that errs, and classes that are not quite even, add a little.
    """
    modes = floor("stacked")
    assert modes.found == 1000
    assert 0.017 < modes.reverse_kl < 0.04
    assert 0.6 < modes.good < 0.7


def test_a_game_is_looked_at_in_its_course_and_is_its_seeds_alone():
    played, again = (play("ring", small(), seed=3, looks=4) for _ in range(2))
    assert [nimg for nimg, _ in played.course] == [500, 1000, 1500, 2000]
    assert played.samples.shape == (2500, 2)
    assert torch.equal(played.samples, again.samples)
    assert played.course == again.course
    other = play("ring", small(), seed=4)
    assert not torch.equal(played.samples, other.samples)


def test_a_killed_game_goes_on_to_the_same_end_and_is_not_played_twice(tmp_path: Path):
    whole = play("ring", small(), seed=3, looks=4)
    keep = str(tmp_path / "ring-3")
    code = f"""
import os, signal, torch
from pipeline import kept_course
from pipeline.mode_games import play
from tests.pipeline.test_mode_games import small

def heard(nimg, total):
    if nimg > 1200:
        os.kill(os.getpid(), signal.SIGKILL)

kept_course.KEPT_SEC = 0.0
torch.set_num_threads({torch.get_num_threads()})
play("ring", small(), seed=3, looks=4, heard=heard, keep={keep!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean_environment())
    assert killed.returncode == -signal.SIGKILL
    half = tmp_path / "ring-3" / "checkpoints" / f"{7:012d}" / "game-0123.safetensors"
    half.parent.mkdir()
    half.write_bytes(b"killed before its record")

    def again() -> list[int]:
        ticks: list[int] = []
        looks: list[int] = []
        played = play(
            "ring", small(), seed=3, looks=4, keep=keep,
            heard=lambda nimg, total: ticks.append(nimg),
            looked=lambda nimg, modes: looks.append(nimg),
        )  # fmt: skip
        assert torch.equal(played.samples, whole.samples)
        assert played.course == whole.course
        assert looks == [500, 1000, 1500, 2000]
        assert not half.exists()
        return ticks

    assert min(again()) > 1000
    assert not again()  # there is nothing left to play
    with pytest.raises(ConfigError, match="other settings, seed or looks"):
        play("ring", small(), seed=4, looks=4, keep=keep)


def test_two_commands_do_not_keep_one_game(tmp_path: Path):
    def second(nimg: int, total: int) -> None:
        with pytest.raises(ConfigError, match=f"another process plays the game that {tmp_path}"):
            play("ring", small(), seed=3, keep=str(tmp_path))

    play("ring", small(), seed=3, heard=second, keep=str(tmp_path))


def test_the_command_prints_the_floor_the_games_and_the_published_table(tmp_path: Path):
    picture = tmp_path / "ring.png"
    words = ["modes", "ring", "turns.total_kimg=2", "generator.width=16", "discriminator.width=16"]
    result = CliRunner().invoke(forger, [*words, "--seeds", "2", "-o", str(picture)])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    (real,) = (line for line in lines if line[:2] == ["real", "samples"])
    assert real[2] == "8/8"
    assert [line[1] for line in lines if line[0] == "seed"] == ["0", "1"]
    assert any(line[0] == "PacGAN2" for line in lines)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_says_how_a_kept_game_goes_on(tmp_path: Path, monkeypatch):
    seen: list[int] = []
    real = PointMixture.modes

    def interrupted(self: PointMixture, samples: torch.Tensor) -> Modes:
        seen.append(len(samples))
        if len(seen) == 3:  # the floor, the first look, and now the second
            signal.raise_signal(signal.SIGINT)
        return real(self, samples)

    monkeypatch.setattr(PointMixture, "modes", interrupted)
    monkeypatch.setattr(kept_course, "KEPT_SEC", 0.0)
    words = ["modes", "ring", "turns.total_kimg=2", "generator.width=16", "discriminator.width=16"]
    words += ["--seeds", "1", "--looks", "4", "--keep", str(tmp_path / "kept")]
    # As in a terminal; whoever started the tests may have had it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = CliRunner().invoke(forger, words)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == 130, stopped.output
    assert stopped.stdout.splitlines()[-1] == "stopped; the same command goes on where it was"
    on = CliRunner().invoke(forger, words)
    assert on.exit_code == 0, on.output
    assert "all modes in" in on.stdout
    assert len(seen) == 3 + 1 + 3  # the floor again, and the three looks that were left


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_games_of_several_processes_end_with_their_command(number, code, tmp_path: Path):
    words = ["modes", "ring", "turns.total_kimg=100000", "--seeds", "3", "--processes", "2"]
    command = Desk(tmp_path).start(*words, "--keep", "kept")
    deadline = time.monotonic() + DEADLINE_SEC
    while not all((tmp_path / "kept" / f"ring-{seed}").exists() for seed in (0, 1)):
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    games = psutil.Process(command.pid).children(recursive=True)
    assert len(games) >= 2
    command.send_signal(number)  # alone, and not its games
    _, left = psutil.wait_procs(games, timeout=DEADLINE_SEC)
    output, _ = command.communicate(timeout=DEADLINE_SEC)
    assert command.returncode == code, output
    assert not left
    assert not (tmp_path / "kept" / "ring-2").exists()


def test_a_setting_that_cannot_be_is_refused(tmp_path: Path):
    result = CliRunner().invoke(forger, ["modes", "ring", "generator.network=dcgan"])
    assert result.exit_code != 0
    assert "plays square images" in str(result.exception or result.output)


def test_a_gpu_that_is_demanded_must_be_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(forger, ["modes", "ring", "cluster.device=cuda"])
    assert isinstance(result.exception, ConfigError)
    assert "needs a GPU" in str(result.exception)

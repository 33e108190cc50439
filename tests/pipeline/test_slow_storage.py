"""Storage that takes its time: ranks that wait for it are not taken for hanging ones."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gan.world import World
from pipeline.checkpoint import CheckpointWriter
from pipeline.dataset import open_shards
from pipeline.play import play
from pipeline.run import Run
from pipeline.storage import open_storage
from tests.pipeline.servers import DEADLINE_SEC
from tests.pipeline.test_play import small_experiment
from tests.ranks import run_ranks

SIGNS = 12  # more than rounds and judging give from one checkpoint to the next


def play_with_a_slow_first_checkpoint(run_uri: str, shards_uri: str, scratch: str) -> str:
    """Rank 0's first checkpoint is on its way until rank 1 has given so many signs of life; what
    became of it.
    """
    shards = open_shards(shards_uri)
    run = Run.at(open_storage(run_uri))
    signs, became = Path(scratch) / "signs", []

    def alive() -> None:
        if World.current().rank == 1:
            with signs.open("ab") as file:
                file.write(b".")

    def slowly(writer: CheckpointWriter, *what) -> None:
        if not became:
            before = signs.read_bytes()
            until, deadline = len(before) + SIGNS, time.monotonic() + DEADLINE_SEC
            while len(signs.read_bytes()) < until and time.monotonic() < deadline:
                time.sleep(0.05)
            became.append("seen" if time.monotonic() < deadline else "rank 1 was not heard of")
        write(writer, *what)

    write = CheckpointWriter._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointWriter, "_write", slowly)
        assert play(run, shards, alive=alive).finished
    return became[0] if became else ""


@pytest.mark.slow
def test_all_ranks_wait_for_the_checkpoint_before_the_next(stripes, tmp_path):
    run = Run.open("slow", small_experiment(stripes, tmp_path, name="slow"), stripes)
    told = run_ranks(
        play_with_a_slow_first_checkpoint, 2, run.storage.uri, stripes.uri, str(tmp_path)
    )
    assert told == ["seen", ""]

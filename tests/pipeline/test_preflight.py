"""`forger check` finds what is wrong, by name, and is quiet where nothing is."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan.config import ConditioningConfig, DiscriminatorConfig, GeneratorConfig
from gan.world import World
from pipeline.data_config import DataConfig
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment import Experiment
from pipeline.folder import Folder
from pipeline.preflight import verdicts
from pipeline.preflight.findings import Finding
from pipeline.preflight.here import (
    check_data_set,
    check_storage,
    check_token,
    check_tracking,
    new_mark,
    sweep_marks,
)
from pipeline.preflight.worker import job_of, look, software
from pipeline.shards import write_shards
from pipeline.storage import open_storage
from tests.conftest import striped_images
from tests.pipeline.quick_experiment import small
from tests.pipeline.servers import free_port
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, stripes) -> Path:
    """A folder with a prepared set of its own in data/."""
    shutil.copytree(stripes.uri, tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="module")
def played(stripes, tmp_path_factory) -> tuple[Experiment, ShardSet, dict[str, Any]]:
    """What a good worker tells; the faults of others are planted in copies of it."""
    storage = tmp_path_factory.mktemp("runs")
    experiment, mark = small(stripes.uri, storage), new_mark()
    (facts,) = look(job_of(experiment, stripes.uri, str(storage), mark))
    sweep_marks(open_storage(storage), mark)
    return experiment, stripes, facts


# --- what this process sees -------------------------------------------------------------------


def no_data(place: Path) -> list[Finding]:
    return check_data_set(small(str(place / "nothing"), place))[1]


def a_damaged_index(place: Path) -> list[Finding]:
    (place / "data" / "index.json").write_text('{"schema": 2')
    return check_data_set(small(str(place / "data"), place))[1]


def a_missing_shard(place: Path) -> list[Finding]:
    next((place / "data").glob("*.arrow")).unlink()
    return check_data_set(small(str(place / "data"), place))[1]


def a_flipped_byte(place: Path) -> list[Finding]:
    shard = next((place / "data").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return check_data_set(small(str(place / "data"), place))[1]


def classes_of_data_without_labels(place: Path) -> list[Finding]:
    images = ((image, -1) for image, _ in striped_images(20))
    write_shards(str(place / "plain"), images, classes=(), origin={})
    conditioning = ConditioningConfig(name="projection")
    experiment = small(str(place / "plain"), place, conditioning=conditioning)
    return check_data_set(experiment)[1]


def weights_of_classes_that_are_not_there(place: Path) -> list[Finding]:
    data = DataConfig(shards=str(place / "data"), balance="classes", class_weights=(1, 2, 3))
    return check_data_set(small("", place, data=data))[1]


def a_file_in_the_storages_place(place: Path) -> list[Finding]:
    (place / "runs").write_text("not a folder")
    return [check_storage(open_storage(place / "runs"), new_mark())]


class Careless(Folder):
    """A store that ignores `If-None-Match`, as some that call themselves S3-compatible do."""

    def create(self, name: str, data: bytes) -> bool:
        self.write(name, data)
        return True


def a_store_that_lets_two_writers_win(place: Path) -> list[Finding]:
    return [check_storage(Careless(place / "runs"), new_mark())]


def an_mlflow_that_is_away(place: Path, monkeypatch) -> list[Finding]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    return [check_tracking(str(place))]


def an_address_that_is_no_mlflow(place: Path, monkeypatch) -> list[Finding]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlflow.example.com:5000")
    return [check_tracking(str(place))]


def a_cluster_without_a_token() -> list[Finding]:
    return [check_token({"RAY_ADDRESS": "10.1.2.3:6379"}).finding]


def a_token_that_is_not_there(place: Path) -> list[Finding]:
    path = str(place / "token")
    return [check_token(_with_token(path)).finding]


def an_empty_token(place: Path) -> list[Finding]:
    return [check_token(_with_token(str(_token(place, "\n", mode=0o600)))).finding]


def a_token_that_others_can_read(place: Path) -> list[Finding]:
    return [check_token(_with_token(str(_token(place, "secret", mode=0o644)))).finding]


def _token(place: Path, text: str, *, mode: int) -> Path:
    path = place / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def _with_token(path: str) -> dict[str, str]:
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    return dict(zip(names, ("10.1.2.3:6379", "token", path), strict=True))


HERE: dict[Callable[..., list[Finding]], str] = {
    no_data: r"no prepared data .* remedy: make it with `forger prepare`",
    a_damaged_index: r"not valid JSON .* remedy: prepare it again",
    a_missing_shard: r"1 of 1 shards are missing",
    a_flipped_byte: r"differs from its checksum; .* remedy: prepare the data again",
    classes_of_data_without_labels: r"labels",
    weights_of_classes_that_are_not_there: r"data.class_weights .* each of the 2 classes, got 3",
    a_file_in_the_storages_place: r"runs.*needed: a place to write to",
    a_store_that_lets_two_writers_win: r"second writer replace .* If-None-Match",
    an_mlflow_that_is_away: r"does not answer within 5 s .* remedy: start the server",
    an_address_that_is_no_mlflow: r"MLFLOW_TRACKING_URI must be",
    a_cluster_without_a_token: r"not set.* which others can reach; .* runs anybody's code",
    a_token_that_is_not_there: r"cannot be read .* remedy: set RAY_AUTH_TOKEN_PATH",
    an_empty_token: r"is empty; .* remedy: write the cluster's token",
    a_token_that_others_can_read: r"mode 0644: .* remedy: chmod 600",
}


@pytest.mark.parametrize("plant", HERE, ids=lambda plant: plant.__name__)
def test_a_fault_here_is_found(plant, place, monkeypatch):
    given = {"place": place, "monkeypatch": monkeypatch}
    wanted = plant.__code__.co_varnames[: plant.__code__.co_argcount]
    found = plant(**{name: given[name] for name in wanted})
    assert found
    assert all(f.state == "wrong" and f.needed and f.remedy for f in found), found
    assert re.search(HERE[plant], str(found[0])), str(found[0])


def test_what_is_good_here_is_quiet_and_leaves_nothing(place, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shards, data = check_data_set(small(str(place / "data"), place))
    storage = open_storage(place / "runs")
    found = [
        *data,
        check_storage(storage, new_mark()),
        check_token({}).finding,
        check_token({"RAY_ADDRESS": "127.0.0.1:6379"}).finding,
        check_token(_with_token(str(_token(place, "secret", mode=0o600)))).finding,
        check_token(
            {"RAY_ADDRESS": "h:1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}
        ).finding,
    ]
    assert [f.state for f in found] == ["good"] * len(found), found
    assert shards == open_shards(str(place / "data"))
    assert storage.names() == []
    shown = check_token(_with_token(str(place / "token")))
    assert shown.value == "secret"
    assert "secret" not in " ".join(map(repr, [*found, shown]))


# --- what workers tell ------------------------------------------------------------------------


def changed(facts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return facts | {"rank": 1, "host": "other", "storage_own": "check/rank-1"} | changes


def pair(facts: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """A good worker, and one that differs in this; the first won the name that both wanted."""
    first = facts | {"bytes_per_sec": 1e9, "storage_own": "check/rank-0"}
    return [first, changed(first, storage_won=False) | changes]


def seen_by_driver(workers: list[dict[str, Any]]) -> dict[str, bytes]:
    return {facts["storage_own"]: facts["storage_own"].encode() for facts in workers}


def a_worker_with_another_torch(experiment, shards, facts) -> Finding:
    workers = pair(facts, software=facts["software"] | {"torch": "2.9.0"})
    return verdicts.same_software(software(), workers)


def a_worker_with_other_code(experiment, shards, facts) -> Finding:
    workers = pair(facts, software=facts["software"] | {"forger": "0" * 12})
    return verdicts.same_software(software(), workers)


def a_worker_that_may_not_write(experiment, shards, facts) -> Finding:
    workers = pair(facts, storage_error="no permission for s3://bucket/runs")
    return verdicts.shared_storage(workers, seen_by_driver(workers), "s3://bucket/runs")


def a_folder_that_is_another_on_the_other_node(experiment, shards, facts) -> Finding:
    workers = pair(facts)
    return verdicts.shared_storage(workers, seen_by_driver(workers[:1]), "/runs")


def two_workers_that_win_one_name(experiment, shards, facts) -> Finding:
    workers = pair(facts, storage_won=True)
    return verdicts.shared_storage(workers, seen_by_driver(workers), "/runs")


def a_worker_with_other_data(experiment, shards, facts) -> Finding:
    return verdicts.read_data(shards, pair(facts, data_digest="f" * 64))


def a_worker_that_cannot_read(experiment, shards, facts) -> Finding:
    return verdicts.read_data(shards, pair(facts, data_error="there is no prepared data"))


def a_disk_too_small_for_the_cache(experiment, shards, facts) -> Finding:
    free = shards.num_images * shards.image_bytes
    workers = pair(facts, cache_free_bytes=free)
    return verdicts.room_for_cache(experiment, shards, workers)


def a_first_turn_that_diverges(experiment, shards, facts) -> Finding:
    return verdicts.sound_turn(pair(facts | {"scalars": facts["scalars"] | {"d/loss": math.nan}}))


def workers_that_fill_their_node(experiment, shards, facts) -> Finding:
    workers = pair(facts)
    for each in workers:  # each alone would fit
        each |= {"host": "one", "peak_bytes": 6 * 10**9, "memory_bytes": 10 * 10**9}
    return verdicts.enough_memory(workers)


def a_slow_link(experiment, shards, facts) -> Finding:
    round_of = {"round_bytes": 8 * 10**6, "round_sec": 0.1}
    return verdicts.wide_link(pair(facts | round_of, bytes_per_sec=10**8))


THERE: dict[Callable[..., Finding], str] = {
    a_worker_with_another_torch: r"torch 2\.9\.0 on other, .* remedy: install the same lock",
    a_worker_with_other_code: r"forger 0{12} on other",
    a_worker_that_may_not_write: r"worker 1 on other: no permission .* remedy: give workers",
    a_folder_that_is_another_on_the_other_node: r"does not see at /runs .* on other .* s3://",
    two_workers_that_win_one_name: r"2 of 2 workers .* needed: exactly one",
    a_worker_with_other_data: r"worker 1 on other reads digest f{12}; needed: digest ",
    a_worker_that_cannot_read: r"worker 1 on other: there is no prepared data",
    a_disk_too_small_for_the_cache: r"free on other; needed: .* remedy: lower data.cache_gb",
    a_first_turn_that_diverges: r"d/loss not finite .* remedy: lower generator.lr",
    workers_that_fill_their_node: r"12 GB of 10 GB; needed: at most 90%",
    # 8 MB a round, both ways of two halves: 0.08 s at 100 MB/s, of a round of 0.1 s
    a_slow_link: r"100 MB/s .* 80% of a round; needed: 160 MB/s",
}


@pytest.mark.parametrize("plant", THERE, ids=lambda plant: plant.__name__)
def test_a_fault_of_a_worker_is_found(plant, played):
    found = plant(*played)
    assert found.state == "wrong", found
    assert re.search(THERE[plant], str(found)), str(found)


def test_good_workers_are_quiet(played):
    experiment, shards, facts = played
    for workers in ([facts], pair(facts)):
        found = [
            verdicts.same_software(software(), workers),
            verdicts.shared_storage(workers, seen_by_driver(workers), "/runs"),
            verdicts.read_data(shards, workers),
            verdicts.room_for_cache(experiment, shards, workers),
            verdicts.sound_turn(workers),
            verdicts.enough_memory(workers),
            verdicts.wide_link(workers),
        ]
        assert [f.state for f in found] == ["good"] * len(found), found


def test_a_game_that_explodes_is_seen_in_its_first_real_rounds(stripes, tmp_path):
    generator = GeneratorConfig(width=8, latent_dim=4, lr=1e20)
    discriminator = DiscriminatorConfig(width=8, lr=1e20)
    experiment = small(stripes.uri, tmp_path, generator=generator, discriminator=discriminator)
    workers = look(job_of(experiment, stripes.uri, str(tmp_path), new_mark()))
    assert verdicts.sound_turn(workers).state == "wrong"


def test_a_worker_tells_what_it_cannot_read_and_plays_nothing(stripes, tmp_path):
    experiment = small(stripes.uri, tmp_path)
    (facts,) = look(job_of(experiment, str(tmp_path / "nothing"), str(tmp_path), new_mark()))
    assert "scalars" not in facts
    assert verdicts.read_data(stripes, [facts]).state == "wrong"


def look_as(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    return look(jobs[World.current().rank])


@pytest.mark.slow
def test_two_ranks_tell_of_each_other_and_none_waits_for_one_that_cannot_read(stripes, tmp_path):
    job = job_of(small(stripes.uri, tmp_path), stripes.uri, str(tmp_path), new_mark())
    both, again = run_ranks(look_as, 2, job, job)
    assert both == again
    assert [facts["rank"] for facts in both] == [0, 1]
    seen = {name: open_storage(tmp_path).read(name) for name in open_storage(tmp_path).names()}
    found = verdicts.shared_storage(both, seen, str(tmp_path))
    assert found.state == "good", found
    assert both[0]["scalars"] == both[1]["scalars"]
    assert all(facts["bytes_per_sec"] > 0 for facts in both)

    nothing = job_of(small(stripes.uri, tmp_path), "/nothing", str(tmp_path), new_mark())
    told, _ = run_ranks(look_as, 2, job | {"mark": new_mark()}, nothing)
    assert not any("scalars" in facts for facts in told)
    found = verdicts.read_data(stripes, told)
    assert re.search(r"wrong .* worker 1 on .* no prepared data at /nothing", str(found))


def test_the_estimate_is_images_over_their_rates(played):
    experiment, shards, facts = played
    turns = dataclasses.replace(experiment.turns, total_kimg=72)
    experiment = dataclasses.replace(
        experiment,
        turns=turns,
        evaluate=dataclasses.replace(experiment.evaluate, every_kimg=7.2, images=360),
    )
    rates = {"img_per_sec": 20.0, "judged_per_sec": 0.5}
    found = verdicts.estimate(experiment, shards, pair(facts | rates), price_per_hour=3.0)
    # 3,600 s of play; 10 evaluations of 360 images, and 100 real ones, at 2 x 0.5 a second.
    assert found.seconds == pytest.approx(3600 + 3700)
    assert found.device_hours == pytest.approx(2 * 7300 / 3600)
    assert found.price == pytest.approx(3 * found.device_hours)

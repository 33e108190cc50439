"""`forger check` finds what is wrong, by name, and is quiet where nothing is."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from gan.config import ConditioningConfig, DiscriminatorConfig, GeneratorConfig, TurnsConfig
from gan.world import World
from pipeline.data_config import DataConfig
from pipeline.dataset import ShardSet, open_shards
from pipeline.experiment import ClusterConfig, EvaluateConfig, Experiment
from pipeline.experiment_file import experiment_toml
from pipeline.preflight import verdicts
from pipeline.preflight.findings import Finding
from pipeline.preflight.head import admits, check_head
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
from pipeline.storage import Folder, open_storage
from tests.conftest import striped_images
from tests.pipeline.servers import free_port, process, wait_until
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]


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


# --- the whole command ------------------------------------------------------------------------


def forger(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    names = ("RAY_ADDRESS", "RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    clean |= {"PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-m", "jobs", "check", *words]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)


def test_mistakes_of_the_file_end_with_exit_code_2(tmp_path):
    (tmp_path / "bad.toml").write_text('[generator]\nlr = "fast"\nwidht = 8\n')
    done = forger(tmp_path, "bad.toml")
    assert done.returncode == 2
    assert "generator.lr" in done.stderr
    assert "widht" in done.stderr


@pytest.mark.slow
def test_the_command_is_quiet_on_a_good_set_up_and_leaves_nothing(place):
    experiment = small(str(place / "data"), place / "runs")
    (place / "good.toml").write_text(experiment_toml(experiment))
    done = forger(place, "good.toml", "cluster.workers=2", "--price-per-hour", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, _, estimate, verdict = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["good"] * 12, done.stdout
    assert verdict == "good"
    assert "device hours" in estimate
    assert "in an all-reduce of 2 workers" in done.stdout
    left = {path.name for path in (place / "runs").iterdir()}
    assert left <= {"mlflow.db", "mlartifacts"}


@pytest.mark.slow
def test_a_dead_cluster_and_a_broken_database_end_with_exit_code_1(place):
    experiment = small(str(place / "data"), place / "runs")
    (place / "good.toml").write_text(experiment_toml(experiment))
    (place / "mlflow.db").write_text("no database, but in its place")
    address, database = f"127.0.0.1:{free_port()}", f"sqlite:///{place}/mlflow.db"
    done = forger(place, "good.toml", RAY_ADDRESS=address, MLFLOW_TRACKING_URI=database)
    assert done.returncode == 1
    assert re.search(rf"wrong +cluster +.*{address}.* does not answer", done.stdout), done.stdout
    assert re.search(r"wrong +MLflow +.*not a database", done.stdout), done.stdout
    assert done.stdout.endswith("2 wrong\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("AWS_SECRET_ACCESS_KEY", "wrong", "key"), ("bucket", "not-there", "bucket")],
)
def test_a_store_with_a_wrong_key_or_without_the_bucket_is_found(
    s3_uri, monkeypatch, name, value, said
):
    good = check_storage(open_storage(s3_uri), new_mark())
    assert good.state == "good"
    if name == "bucket":
        s3_uri = f"s3://{value}/runs"
    else:
        monkeypatch.setenv(name, value)
    found = check_storage(open_storage(s3_uri), new_mark())
    assert found.state == "wrong"
    assert said in found.found


TOO_SMALL = """
import ray
from pipeline.cluster import connected
from pipeline.experiment import ClusterConfig
from pipeline.preflight.check import resources

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=100 * 2**20)
for asked in (
    {"workers": 2}, {"workers": 3}, {"workers": 2, "device": "cuda"},
    {"workers": 2, "cpus_per_worker": 2},
):
    print(resources(ClusterConfig(**asked), wait_sec=0)[1])

@ray.remote(num_cpus=1)
class Other:
    def here(self): ...

other = Other.remote()
ray.get(other.here.remote())
print(resources(ClusterConfig(workers=2), wait_sec=0)[1])
"""


@pytest.mark.slow
def test_a_cluster_that_is_too_small_or_busy_or_without_gpus_is_found(tmp_path):
    clean = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TOO_SMALL], env=clean, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fits, many, gpus, wide, busy = done.stdout.splitlines()
    assert re.match(r"good +cluster +room for 2 of 2 to 2 worker\(s\) with CPUs on 1 node", fits)
    assert re.match(r"wrong +cluster .* ask for 3 CPUs, Ray has 2; needed: 3 worker", many)
    assert re.match(r"wrong +cluster .* 2 workers needs as many GPUs, Ray has 0", gpus)
    assert re.match(r"wrong +cluster .* ask for 4 CPUs, Ray has 2; .*remedy: lower", wide)
    assert re.match(r"wrong +cluster +room for 1 of 2 .* remedy: wait for others", busy)


@pytest.fixture
def head_of(tmp_path) -> Iterator[Callable[[str], str]]:
    """Starts a head on loopback, with RAY_AUTH_MODE as asked and the token "the-token"."""
    folder = Path(tempfile.mkdtemp(prefix="head-"))  # short, for Ray's sockets
    with ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)

        def ended(head: subprocess.Popen) -> None:
            """Its processes are in groups of their own: it ends them itself when it is asked."""
            theirs = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            _, left = psutil.wait_procs(theirs, timeout=20)
            for each in left:
                each.kill()

        def start(mode: str) -> str:
            # Ray takes 10002 to 19999 for its workers, and wants none of its ports among them.
            port, client = (free_port() for _ in range(2))
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
            command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "0"]
            command += ["--include-dashboard", "false", "--ray-client-server-port", str(client)]
            command += ["--min-worker-port", "0", "--max-worker-port", "0"]
            command += ["--dashboard-agent-listen-port", "0"]
            env = os.environ | {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
            env |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "the-token"}
            log = tmp_path / "head.log"
            head = running.enter_context(process(command, log, env=env))
            wait_until(
                lambda: "Ray runtime started" in log.read_text(),
                "the head", processes=(head,), log=log,
            )  # fmt: skip
            running.callback(ended, head)
            return f"127.0.0.1:{port}"

        yield start


@pytest.mark.slow
def test_a_head_that_refuses_the_token_is_found_at_once(head_of):
    address = head_of("token")
    assert admits(address, "the-token") is True
    assert admits(address, "another") is False
    assert admits(f"127.0.0.1:{free_port()}", "the-token") is None
    found = check_head(address, "another", alone=True)
    assert re.search(r"refuses this token; needed: .* RAY_AUTH_TOKEN_PATH", str(found))
    found = check_head(address, "", alone=True)
    assert re.search(r"refuses who has no token; .* RAY_AUTH_MODE=token", str(found))
    found = check_head(address, "the-token", alone=False)
    assert found is not None
    assert found.state == "good"


@pytest.mark.slow
def test_a_head_that_lets_anybody_in_is_found(head_of):
    address = head_of("disabled")
    found = check_head(address, "the-token", alone=False)
    assert re.search(
        r"wrong +token .* also lets in who has no token; .* anybody's code", str(found)
    )
    found = check_head(address, "the-token", alone=True)
    assert found is not None
    assert found.state == "good"

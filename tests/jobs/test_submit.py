"""Verbs as jobs on a real Ray head with a token, a real MLflow on Postgres, and a real S3."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from pipeline.stack.stack import RAY
from tests.jobs.head import BIN, Cluster, Line, ray_head
from tests.pipeline.desk import ROOT, clean_environment
from tests.pipeline.servers import (
    BUCKET,
    DEADLINE_SEC,
    S3,
    Missing,
    free_port,
    mlflow_server,
    open_folder,
    or_skip,
    postgres,
)

pytestmark = pytest.mark.slow

CANARY = "canary-" + secrets.token_hex(16)
SMALL = (
    "cluster.workers=2",
    "turns.total_kimg=12",
    "evaluate.images=200",
    "evaluate.every_kimg=12",
)
SEARCH = """
extends = "digits.toml"
name = "sought"
[turns]
total_kimg = 4
[evaluate]
images = 200
every_kimg = 4
[search]
trials = 2
scheduler = "none"
finalists = 1
final_images = 200
final_seeds = 2
[search.space]
generator.lr = { choice = [1e-3, 2e-3] }
"""


@pytest.fixture(scope="module")
def cluster(ceph: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("submit")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    named = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with ExitStack() as running:
        try:
            stores = running.enter_context(postgres("mlflow"))
        except Missing as error:
            or_skip(error)
        artifacts = f"s3://{BUCKET}/{uuid.uuid4().hex}"
        tracking = running.enter_context(
            mlflow_server(stores["mlflow"], artifacts, folder, env=dict(ceph))
        )
        scratch = running.enter_context(open_folder("forger-head-"))
        nodes = clean_environment() | dict(ceph) | named | RAY
        nodes["PATH"] = f"{BIN}{os.pathsep}{nodes['PATH']}"
        dashboard = running.enter_context(ray_head(scratch, nodes))
        env = (
            clean_environment()
            | dict(ceph)
            | {
                "PYTHONPATH": str(ROOT),
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_API_SERVER_ADDRESS": dashboard,
                "MLFLOW_TRACKING_URI": tracking,
                "MLFLOW_TRACKING_PASSWORD": CANARY,
            }
        )
        there = Cluster(folder, scratch / "r", dashboard, env)
        there.run("prepare", "embedded:digits", "data/digits")
        (folder / "digits.toml").write_bytes(
            (ROOT / "jobs" / "experiments" / "digits.toml").read_bytes()
        )
        yield there


def test_a_training_is_watched_through_a_cut_stopped_in_the_middle_and_resumed(cluster):
    line, storage = Line(cluster.dashboard), f"s3://{BUCKET}/{uuid.uuid4().hex}"
    words = ("train", "digits.toml", *SMALL, f"cluster.storage={storage}")
    first = cluster.watch("submit", *words, RAY_API_SERVER_ADDRESS=line.uri)
    shown = [next(first)]
    job_id = shown[0].split()[1]
    assert re.fullmatch(r"digits-[0-9a-f]{4}-1", job_id)
    while not re.match(r" +\d+\.\d +\d+m\d\ds", shown[-1]):  # a tick
        shown.append(next(first))
    assert line.cut() > 0
    cluster.run("stop", job_id)
    *rest, verdict, ended = first
    assert ended.startswith("1 ")
    assert f"job {job_id} was stopped; forger resume {job_id}" in verdict
    assert "is followed on" in ended
    log = cluster.run("logs", job_id)
    assert log == "".join([*shown[1:], *rest])  # nothing twice and nothing lost through the cut
    stopped = re.search(r"stopped at (\d+\.\d) kimg; to go on: forger resume (\S+)", log)
    assert stopped is not None
    assert stopped[2] == job_id
    assert 0 < float(stopped[1]) < 12

    second = cluster.watch("resume", job_id)
    shown = [next(second)]
    refused = cluster.run("submit", *words, code=2)
    assert f"{job_id[:-1]}2 is at work on digits" in refused
    *shown, ended = second
    output = "".join(shown)
    assert ended == "0 ", output + ended
    assert f"resuming at {stopped[1]} of 12 kimg on 2 worker(s)" in output
    assert "registered as candidate models:/digits-candidates/1" in output
    states = [row.split()[3] for row in cluster.run("jobs").splitlines()[1:]]
    assert states[:2] == ["stopped", "succeeded"]

    _check_tracked(cluster, storage)
    _check_canaries(cluster, log)


def _check_tracked(cluster: Cluster, storage: str) -> None:
    """One run with each point once, and a version whose weights are in the bucket."""
    import boto3
    from mlflow import MlflowClient

    client = MlflowClient(cluster.env["MLFLOW_TRACKING_URI"], cluster.env["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("digits-candidates", "candidate")
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "d/loss")]
    assert steps == sorted(set(steps))
    assert max(steps) >= 12_000
    assert run.info.artifact_uri is not None
    assert CANARY not in json.dumps(run.to_dictionary())
    names = {
        "endpoint_url": "AWS_ENDPOINT_URL",
        "aws_access_key_id": "AWS_ACCESS_KEY_ID",
        "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
        "region_name": "AWS_DEFAULT_REGION",
    }
    store = boto3.client("s3", **{key: cluster.env[name] for key, name in names.items()})
    keys = [
        item["Key"]
        for page in store.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        for item in page.get("Contents", [])
    ]
    model_id = str(version.source).rpartition("/")[2]
    assert any(model_id in key for key in keys)
    prefix = storage.rpartition("/")[2]
    assert any(key.startswith(f"{prefix}/digits/checkpoints/") for key in keys)


def _check_canaries(cluster: Cluster, log: str) -> None:
    """No secret in what the cluster shows or keeps: jobs, logs, package."""
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    canaries = [CANARY, cluster.env["AWS_SECRET_ACCESS_KEY"], token]
    kept = [file for file in cluster.session.rglob("*") if file.is_file()]
    assert any(file.name == "digits.toml" for file in kept)  # the package is among them
    texts = {}
    for file in kept:
        with suppress(FileNotFoundError):  # Ray turns its logs over
            texts[str(file)] = file.read_bytes()
    texts |= {"jobs": cluster.ask("/api/jobs/"), "log": log.encode()}
    for name, text in texts.items():
        assert not [c for c in canaries if c.encode() in text], name
    variables = json.loads(texts["jobs"])[0]["runtime_env"]["env_vars"]
    assert variables["MLFLOW_TRACKING_URI"] == cluster.env["MLFLOW_TRACKING_URI"]
    assert not {"AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} & variables.keys()


def test_a_search_an_evaluation_and_a_promotion_are_jobs_too(cluster):
    """Each ends as the same words do without `submit`: a rejected candidate by exit code 3."""
    from mlflow import MlflowClient

    storage = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    (cluster.folder / "sought.toml").write_text(SEARCH)
    searched = cluster.run("submit", "search", "sought.toml", f"cluster.storage={storage}")
    assert re.match(r"job +sought-search-[0-9a-f]{4}-1 ", searched), searched
    registered = re.search(r"registered as candidate models:/(\S+)/1", searched)
    assert registered is not None, searched
    tracking = cluster.env["MLFLOW_TRACKING_URI"]
    client = MlflowClient(tracking, tracking)
    version = client.get_model_version(registered[1], "1")
    parents = client.search_runs(
        [client.get_run(str(version.run_id)).info.experiment_id],
        filter_string="tags.`forger.kind` = 'search'",
    )
    assert [run.info.status for run in parents] == ["FINISHED"]

    where = ("--storage", storage)
    model = f"models:/{registered[1]}/1"
    judged = cluster.run("submit", "evaluate", model, "--images=200", *where)
    assert "200 images against" in judged
    name = registered[1].removesuffix("-candidates")
    (cluster.folder / "strict.toml").write_text("min_coverage = 0.999\n")
    gate = ("--images=400", "--max-images=400", "--rules=strict.toml", *where)
    rejected = cluster.start("submit", "promote", name, *gate)
    output, errors = rejected.communicate(timeout=DEADLINE_SEC)
    assert rejected.returncode == 3, output + errors
    forced = cluster.run("submit", "promote", name, *gate, "--force", "--reason=a test")
    assert "champion" in forced
    assert client.get_model_version_by_alias(name, "champion").version == "1"
    rows = [row.split() for row in cluster.run("jobs").splitlines()[-4:]]
    states = [(row[1], row[3] + row[4] * row[4].startswith("(")) for row in rows]
    assert states == [
        ("search", "succeeded"),
        ("evaluate", "succeeded"),
        ("promote", "failed(3)"),
        ("promote", "succeeded"),
    ]


def submissions(cluster: Cluster) -> set[str]:
    return {job["submission_id"] for job in json.loads(cluster.ask("/api/jobs/"))}


def test_what_cannot_be_submitted_says_why_and_leaves_nothing_behind(cluster):
    other = cluster.folder / "other-token"
    other.touch(mode=0o600)
    other.write_text(secrets.token_hex(32))
    seen = cluster.folder / "seen-token"
    seen.write_bytes(Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_bytes())
    seen.chmod(0o644)
    train, at = ("train", "digits.toml", "name=refused"), "RAY_API_SERVER_ADDRESS"
    secret = cluster.env["AWS_SECRET_ACCESS_KEY"]
    cases = [
        (train, {"RAY_AUTH_TOKEN_PATH": str(other)}, 2, "refuses the token"),
        (train, {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, 2, "there is none in /nowhere"),
        (train, {"RAY_AUTH_TOKEN_PATH": str(seen)}, 2, "chmod 600"),
        (train, {at: f"http://127.0.0.1:{free_port()}"}, 75, "does not answer"),
        (train, {at: cluster.env["MLFLOW_TRACKING_URI"]}, 2, "no Ray dashboard"),
        (train, {at: "", "RAY_ADDRESS": "127.0.0.1:6379"}, 2, "forger up"),
        (train, {at: "http://192.0.2.1:8265"}, 2, "plain HTTP"),
        ((*train, "generator.lrr=1", "seed=x"), {}, 2, "did you mean generator.lr?"),
        ((*train, "data.shards=nowhere"), {}, 2, "nowhere"),
        ((*train, "conditioning.name=none", "data.flip=maybe"), {}, 2, "data.flip"),
        (train, {"MLFLOW_TRACKING_URI": "http://me:pass@127.0.0.1:5"}, 2, "has a password"),
        ((*train, f"evaluate.extractor={secret}"), {}, 2, "the value of AWS_SECRET_ACCESS_KEY"),
        (("train", "none.toml"), {}, 2, "no experiment file"),
        (("search", "digits.toml"), {}, 2, "search"),
    ]
    before, there = submissions(cluster), sorted(cluster.folder.rglob("*"))
    started = [(cluster.start("submit", *words, **env), *rest) for words, env, *rest in cases]
    for process, code, expected in started:
        output, errors = process.communicate(timeout=DEADLINE_SEC)
        assert process.returncode == code, (expected, output + errors)
        assert expected in errors
        assert "Traceback" not in errors
    assert submissions(cluster) == before
    assert sorted(cluster.folder.rglob("*")) == there
    assert "knows no job nobody-1" in cluster.run("stop", "nobody-1", code=2)


def test_a_head_elsewhere_that_asks_for_no_token_is_refused(tmp_path):
    """A real one would let anybody who reaches this machine run code on it: what answers here does
    as a dashboard without authentication does, and no more.
    """
    own = [
        each.address
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    if not own:
        pytest.skip("this machine has no address but loopback")

    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"version": "4"}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer((own[0], 0), Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [sys.executable, "-m", "jobs", "jobs", "--allow-http"],
            env=clean_environment()
            | {
                "PYTHONPATH": str(ROOT),
                "RAY_API_SERVER_ADDRESS": f"http://{own[0]}:{server.server_port}",
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SEC,
        )
        server.shutdown()
    assert done.returncode == 2, done.stderr
    assert "asks for no token, so anybody who reaches it runs code there" in done.stderr
    assert "Traceback" not in done.stderr


RACE = """
import pathlib, sys
from pipeline.job_log import follow
from pipeline.job_server import NONCE, JobServer

server, package = JobServer.connect(), pathlib.Path(sys.argv[1])
assert server.here
words = {"package": package, "variables": {}}
job = "echo ä; cat told.txt; exit 3"
assert server.submit("race-1", job, metadata={NONCE: "a"}, **words)
assert not server.submit("race-1", job, metadata={NONCE: "b"}, **words)
assert server.submit("race-1", job, metadata={NONCE: "a"}, **words)  # an answer that was lost
text = []
ended = follow(server, "race-1", wrote=text.append, said=print)
assert {"ä", "of this job"} <= set("".join(text).splitlines()), text
assert (ended.status, ended.exit_code) == ("FAILED", 3), ended
assert [job.id for job in server.jobs()].count("race-1") == 1
assert server.find("race-2") is None
"""


def test_an_id_is_given_once_and_a_job_ends_with_its_own_exit_code(cluster, tmp_path):
    """In a process of its own: Ray remembers a token for as long as its process lives."""
    (tmp_path / "told.txt").write_text("of this job\n")
    done = subprocess.run(
        [sys.executable, "-c", RACE, tmp_path], env=cluster.env, capture_output=True, text=True,
        timeout=DEADLINE_SEC,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shown = cluster.run("logs", "-f", "race-1", code=3)
    assert "of this job\n" in shown
    assert "error: job race-1 failed with exit code 3" in shown

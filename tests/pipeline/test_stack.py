"""The stack without Docker: it comes up, serves, keeps what it stored, and goes without trace."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from pipeline.processes import end, family, started
from pipeline.shards import write_shards
from pipeline.stack.ceph import forget_ceph, start_ceph
from pipeline.stack.service import StackError, start, wait_until
from tests.pipeline.desk import ROOT, Desk, blobs, clean_environment
from tests.pipeline.servers import DEADLINE_SEC, Missing, or_skip

STORED = b"what was stored before"


def no_ceph() -> None:
    if shutil.which("radosgw") is None:
        or_skip(
            Missing("Ceph is not installed (Debian: apt-get install radosgw ceph-mon ceph-osd)")
        )


def typed(folder: Path, *words: str, code: int = 0, **env: str) -> tuple[str, str]:
    plain = {k: v for k, v in clean_environment().items() if not k.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *words], cwd=folder, capture_output=True, text=True,
        env=plain | {"PYTHONPATH": str(ROOT)} | env, timeout=DEADLINE_SEC,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def s3_client(env: dict[str, str]):
    return boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def evaluated(line: str) -> dict[str, str]:
    """What a shell has in its environment once it evaluated the line."""
    done = subprocess.run(
        ["sh", "-c", f"{line}\nenv"], capture_output=True, text=True, check=True, env={}
    )
    return dict(each.split("=", 1) for each in done.stdout.splitlines())


def listening() -> dict[int, set[str]]:
    """The addresses, as the kernel writes them, that each port of this machine is open on."""
    found: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            local, state = row.split()[1], row.split()[3]
            if state == "0A":
                address, _, port = local.partition(":")
                found.setdefault(int(port, 16), set()).add(address)
    return found


@pytest.mark.slow
def test_the_stack_comes_up_with_secrets_of_its_own_and_goes_without_a_trace(tmp_path):
    no_ceph()
    folder = tmp_path / ".forger"
    try:
        line, said = typed(tmp_path, "up", "--workers", "1")
        env = evaluated(line)
        typed_env: Any = {
            k: v for k, v in env.items() if k.startswith(("RAY_", "AWS_", "MLFLOW_"))
        }
        assert env["AWS_SECRET_ACCESS_KEY"] not in line + said
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for secret in ("env", "token", "s3/env"):
            assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600, secret
        assert env["RAY_AUTH_TOKEN_PATH"] == str(folder / "token")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(env["RAY_API_SERVER_ADDRESS"] + "/api/jobs/")
        urllib.request.urlopen(env["MLFLOW_TRACKING_URI"] + "/health")
        addresses = listening()
        for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS"):
            assert addresses[urlsplit(env[name]).port or 0] == {"0100007F"}, name
        s3_client(env).put_object(Bucket="forger", Key="kept", Body=STORED)
        assert "no job was submitted" in typed(tmp_path, "jobs", **typed_env)[0]
        again, said = typed(tmp_path, "up")
        assert (again, "up already" in said) == (line, True)
        record = json.loads((folder / "stack.json").read_text())
        names = [service["name"] for service in record["services"]]
        expected = ["ceph-mon", "ceph-osd", "radosgw", "mlflow", "ray-head", "ray-w1"]
        assert names == expected
        processes = family(service["pid"] for service in record["services"])
        assert len(processes) > len(names)
        forget, _ = typed(tmp_path, "down")
        assert set(forget.split()[1:]) == set(typed_env)
        assert not [pid for pid, began in processes.items() if started(pid) == began]
        assert not Path(record["scratch"]).exists()
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["lock", "logs", "mlflow", "s3", "token"]
        assert "nothing is up" in typed(tmp_path, "down", "--purge")[1]
        assert not folder.exists()
    finally:
        typed(tmp_path, "down", "--purge")


SESSION = """
set -e
forger() {{ {python} -m jobs "$@"; }}
eval "$(forger up)"
forger train stripes.toml data.shards=more cluster.storage=s3://forger/runs \\
  turns.total_kimg=20 turns.batch_size=32 generator.lr=2e-3 discriminator.lr=2e-3 \\
  evaluate.images=500 evaluate.every_kimg=20 ema.half_life_kimg=0.5
forger promote stripes --storage s3://forger/runs --images 1000
forger sample models:/stripes@champion -n 4 --storage s3://forger/runs -o grid.png
pgrep -f {folder} | sort > while-up
eval "$(forger down)"
env | grep -c '^AWS_\\|^RAY_AUTH\\|^MLFLOW_TRACKING' > variables-left || true
"""


@pytest.mark.slow
def test_a_session_from_up_to_down_trains_promotes_draws_and_leaves_no_process(tmp_path):
    no_ceph()
    desk = Desk(tmp_path)
    more = str(tmp_path / "more")  # as many as the gate asks for, and with shapes to be learnt
    write_shards(more, blobs(1200), classes=("left", "right"), origin={})
    plain = {k: v for k, v in clean_environment().items() if not k.startswith("AWS_")}
    try:
        done = subprocess.run(
            ["bash", "-c", SESSION.format(python=sys.executable, folder=desk.folder)],
            cwd=desk.folder, capture_output=True, text=True,
            env=plain | {"PYTHONPATH": str(ROOT)}, timeout=DEADLINE_SEC,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert (desk.folder / "grid.png").read_bytes().startswith(b"\x89PNG")
        assert len((desk.folder / "while-up").read_text().split()) > 1  # the shell, and servers
        left = subprocess.run(["pgrep", "-f", str(desk.folder)], capture_output=True, text=True)
        assert left.stdout == ""
        assert (desk.folder / "variables-left").read_text().strip() == "0"
        kept = sorted(path.name for path in desk.folder.iterdir())
        names = ["data", "grid.png", "more", "stripes.toml", "variables-left", "while-up"]
        assert kept == [".forger", *names]
    finally:
        typed(tmp_path, "down", "--purge")


@pytest.mark.slow
def test_what_is_stored_in_ceph_is_there_after_it_was_killed(tmp_path):
    no_ceph()
    for time in (1, 2):
        services, variables = start_ceph(tmp_path / "s3")
        try:
            client = s3_client(variables)
            if time == 1:
                client.create_bucket(Bucket="kept")
                client.put_object(Bucket="kept", Key="object", Body=STORED)
            else:
                got = client.get_object(Bucket="kept", Key="object")
                assert got["Body"].read() == STORED
        finally:
            first = [service.pid for service in services]
            end(family(first), first=(), grace_sec=0)
    forget_ceph(tmp_path / "s3")
    assert not list((tmp_path / "s3").glob("*.pid"))


def test_a_server_that_ends_at_once_is_named_with_its_last_words(tmp_path):
    service = start(
        "crashing", ["sh", "-c", "echo no such setting; exit 1"],
        logs=tmp_path, env=dict(os.environ), cwd=tmp_path,
    )  # fmt: skip
    with pytest.raises(StackError, match=r"crashing ended at once[^\n]*\nno such setting"):
        wait_until(lambda: False, services=[service])


def test_a_family_is_ended_to_its_last_member_and_nobody_else(tmp_path):
    script = "trap '' TERM; sleep 60 & (sleep 61 & wait) & wait"
    stubborn = subprocess.Popen(["sh", "-c", script])
    other = subprocess.Popen(["sleep", "60"])
    try:
        while len(family([stubborn.pid])) < 4:
            pass
        members = family([stubborn.pid])
        end(members | {other.pid: started(other.pid) - 1}, first=[stubborn.pid], grace_sec=0.2)
        stubborn.wait()
        assert not [pid for pid, began in members.items() if started(pid) == began]
        assert other.poll() is None  # its number was known with another beginning
    finally:
        other.kill()
        other.wait()


def test_without_ceph_up_says_what_to_install(tmp_path):
    programs = tmp_path / "bin"  # of a machine without Ceph
    programs.mkdir()
    for program in ("bash", "cat", "mkdir", "rm", "sed"):
        (programs / program).symlink_to(shutil.which(program) or program)
    _, said = typed(tmp_path, "up", code=2, PATH=str(programs))
    assert "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd" in said
    assert "--store folder" in said
    assert not list((tmp_path / ".forger").glob("stack.json"))

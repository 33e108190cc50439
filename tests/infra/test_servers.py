"""On a real store: whom the bucket policy lets do what, and users of the script that starts it."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path

import pytest

from pipeline.shards import write_shards
from pipeline.storage import StorageError, open_storage
from tests.conftest import striped_images
from tests.infra.kube import INFRA
from tests.pipeline.servers import CEPH_UP, make_bucket

ROLES = ("forger-worker", "forger-head", "forger-mlflow")


def keys_file(folder: Path, name: str) -> tuple[str, str, Path]:
    access, secret, path = f"{name}-key", uuid.uuid4().hex, folder / name
    path.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    return access, secret, path


@pytest.fixture(scope="module")
def roles(ceph, tmp_path_factory) -> tuple[str, dict[str, tuple[str, str]]]:
    """A bucket under infra's policy, and the keys of those whom it names."""
    folder, bucket = tmp_path_factory.mktemp("keys"), f"policy-{uuid.uuid4().hex[:8]}"
    keys, words = {}, []
    for role in ROLES:
        access, secret, path = keys_file(folder, role)
        keys[role] = access, secret
        words += ["--user", f"{role}={path}"]
    subprocess.run(
        ["bash", str(CEPH_UP), str(ceph.folder), *words], check=True, capture_output=True
    )
    make_bucket(ceph, bucket)
    text = (INFRA / "storage" / "bucket-policy.json").read_text()
    text = text.replace("arn:aws:iam::ACCOUNT:role/", "arn:aws:iam:::user/")
    policy = json.loads(text.replace("BUCKET", bucket))
    (in_the_clear,) = [s for s in policy["Statement"] if s["Effect"] == "Deny"]
    assert in_the_clear["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    policy["Statement"].remove(in_the_clear)  # a store on loopback has no TLS
    import boto3

    owner = boto3.client(
        "s3",
        endpoint_url=ceph["AWS_ENDPOINT_URL"],
        aws_access_key_id=ceph["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ceph["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    owner.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    return bucket, keys


def become(role: str, roles, ceph, monkeypatch) -> str:
    """Works as this role from here on; its bucket."""
    bucket, keys = roles
    for name, value in ceph.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[role][0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[role][1])
    return f"s3://{bucket}"


def uses(uri: str) -> None:
    """All that a run does with its folder."""
    storage = open_storage(uri)
    assert not storage.exists("note")
    assert storage.create("note", b"1")
    assert not storage.create("note", b"2")
    storage.write("note", b"3")
    with storage.publishing("folder/large") as path:
        path.write_bytes(b"x" * (17 * 2**20))  # in parts
    assert storage.names() == ["folder/large", "note"]
    assert storage.read("note") == b"3"
    assert storage.sweep() == []
    for name in storage.names():
        storage.delete(name)
    assert storage.names() == []


@pytest.mark.slow
@pytest.mark.parametrize("role", ["forger-worker", "forger-head"])
def test_the_policy_lets_a_run_do_all_that_it_does(roles, ceph, monkeypatch, role):
    uses(f"{become(role, roles, ceph, monkeypatch)}/runs/{role}")


@pytest.mark.slow
def test_the_policy_lets_the_head_prepare_what_workers_read(roles, ceph, monkeypatch):
    uri = f"{become('forger-head', roles, ceph, monkeypatch)}/data/stripes"
    write_shards(uri, striped_images(20), classes=("left", "right"), origin={})
    become("forger-worker", roles, ceph, monkeypatch)
    storage = open_storage(uri)
    assert all(storage.read(name) for name in storage.names())
    for forbidden in (
        lambda: storage.write("index.json", b"{}"),
        lambda: storage.create("new", b""),
        lambda: storage.delete("index.json"),
    ):
        with pytest.raises(StorageError, match="permission"):
            forbidden()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "place"),
    [
        ("forger-worker", "mlflow/artifacts"),
        ("forger-worker", "elsewhere"),
        ("forger-head", "mlflow/artifacts"),
        ("forger-mlflow", "runs/a-run"),
        ("forger-mlflow", "data/set"),
    ],
)
def test_the_policy_lets_nobody_into_what_is_not_theirs(roles, ceph, monkeypatch, role, place):
    bucket = become(role, roles, ceph, monkeypatch)
    with pytest.raises(StorageError, match="permission"):
        open_storage(f"{bucket}/{place}").write("name", b"1")
    for name, value in ceph.items():  # its owner
        monkeypatch.setenv(name, value)
    open_storage(f"{bucket}/{place}").write("name", b"1")
    become(role, roles, ceph, monkeypatch)
    with pytest.raises(StorageError, match="permission"):
        open_storage(f"{bucket}/{place}").read("name")


@pytest.mark.slow
def test_a_store_on_disk_keeps_its_objects_and_a_user_sees_its_own(tmp_path, ceph, monkeypatch):
    access, secret, path = keys_file(tmp_path, "mlflow")
    up = ["bash", str(CEPH_UP), str(tmp_path / "store"), "--disk", "--gb", "1"]

    def told() -> dict[str, str]:
        done = subprocess.run([*up, "--user", f"mlflow={path}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return dict(
            line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines()
        )

    try:
        owner = told()
        make_bucket(owner, "mine")
        theirs = owner | {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
        make_bucket(theirs, "theirs")
        for name, value in owner.items():
            monkeypatch.setenv(name, value)
        open_storage("s3://mine").write("name", b"kept")
        with pytest.raises(StorageError, match="permission"):
            open_storage("s3://theirs").write("name", b"1")
        subprocess.run([*up[:3], "down"], check=True)
        assert told() == owner
        assert open_storage("s3://mine").read("name") == b"kept"
        secrets = [p for p in (tmp_path / "store").iterdir() if p.is_file()]
        assert all(p.stat().st_mode & 0o077 == 0 for p in secrets)
    finally:
        subprocess.run([*up[:3], "down"], check=True)
    assert not list((tmp_path / "store").glob("*.pid"))

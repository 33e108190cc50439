"""Candidates in MLflow's model registry: trained generators, registered once they are proved.

Trainers register into NAME-candidates, whose alias `candidate` names the newest version. The model
NAME itself is not touched here: it is the log of promotions.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.backend import Backend, pointed_at  # before MLflow: it sets MLflow's environment

# isort: split
from mlflow import MlflowClient, artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from gan.config import ConfigError
from pipeline.asking import models_at
from pipeline.bundle import flat_file
from pipeline.folder import Folder
from pipeline.logged import ARTIFACTS, GENERATOR, SERVED, Logged, log_proved, other_files
from pipeline.manifest import MANIFEST, check_files, check_listing, listing, sha256_of
from pipeline.run import Best, Run
from pipeline.snapshot import Snapshot, read_snapshot
from pipeline.tracking import trial_tags

CANDIDATE = "candidate"
CANDIDATES = "-candidates"
OP = "forger.op"  # one registration: what the version holds, whoever trained it
MANIFEST_TAG = "forger.manifest"  # sha256 of the manifest
FILES_TAG = "forger.files"  # sha256 of each of the model's files that the manifest does not list
WEIGHTS_TAG = "forger.sha256"


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a model of candidates."""

    model: str
    version: str
    known: bool  # whether the same generator had been registered before

    @property
    def uri(self) -> str:
        """How to load it."""
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered candidate, with all that promoting it needs to name."""

    model: str  # with its -candidates
    version: str
    source_uri: str  # models:/m-..., the logged model
    model_id: str
    sha256: str  # of its weights
    manifest_sha256: str
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """How to load it."""
        return f"models:/{self.model}/{self.version}"


def register(where: Backend, run: Run, best: Best, *, mlflow_run_id: str) -> Registered:
    """Registers a snapshot as the next version of NAME-candidates and points `candidate` at the
    newest one.

    A fresh process without Forger first draws from the logged model; where it does not draw what
    the snapshot draws, RegistrationError says why and there is no version. The same weights with
    the same code are registered once, whatever was interrupted or repeated.
    """
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    model = (run.experiment.tracking.model or run.experiment.name) + CANDIDATES
    same_code = flat_file("any commit")  # what it does counts, not the commit it is from
    op = hashlib.sha256(f"{best.sha256} {same_code}".encode()).hexdigest()[:32]
    _ensure_model(client, model)
    version = _first_with(client, model, op)
    known = version is not None
    if version is None:
        logged = log_proved(where, run, best, mlflow_run_id=mlflow_run_id)
        tags = {OP: op} | _tags(run, best, logged)
        with pointed_at(where):  # the client looks the logged model up where MLflow points
            version = _create(client, model, logged, tags, mlflow_run_id=mlflow_run_id)
    client.set_registered_model_alias(model, CANDIDATE, _newest(client, model))
    return Registered(model, version, known)


def candidate_version(client: MlflowClient, name: str) -> Candidate:
    """The candidate that a person names: NAME, NAME@candidate, NAME/7 (a version of
    NAME-candidates), or the models:/NAME-candidates/7 that registering printed.

    Raises ConfigError where there is none.
    """
    text = name.removeprefix("models:/")
    parts = re.fullmatch(r"([^/@:]+)(?:@([^/@:]+)|/(\d+))?", text)
    if not parts or (parts[2] and parts[2] != CANDIDATE):
        raise ConfigError([f"a candidate is NAME, NAME@candidate or NAME/VERSION, got {name!r}"])
    model = parts[1].removesuffix(CANDIDATES) + CANDIDATES
    version = _version(client, model, alias=CANDIDATE, number=parts[3])
    return Candidate(
        model=model,
        version=str(version.version),
        source_uri=str(version.source),
        model_id=str(version.source).removeprefix("models:/"),
        sha256=_tag(version, WEIGHTS_TAG),
        manifest_sha256=_tag(version, MANIFEST_TAG),
        tags=dict(version.tags),
    )


def load_registered(where: Backend, uri: str) -> Snapshot:
    """The generator at models:/NAME@alias or models:/NAME/version, every file checked.

    None of its code is run. Raises ConfigError where there is none, and naming each file that is
    not the one that was registered.
    """
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    parts = re.fullmatch(r"models:/([^/@:]+)(?:@([^/@:]+)|/(\d+))", uri)
    if not parts:
        raise ConfigError(
            [f"MODEL must be models:/NAME@ALIAS or models:/NAME/VERSION, got {uri!r}"]
        )
    version = _version(client, parts[1], alias=parts[2], number=parts[3])
    pinned = f"models:/{version.name}/{version.version}"  # an alias might move meanwhile
    with tempfile.TemporaryDirectory() as folder, pointed_at(where):
        try:
            path = artifacts.download_artifacts(artifact_uri=pinned, dst_path=folder)
        except (MlflowException, OSError) as error:
            raise ConfigError([f"{uri} cannot be loaded from {where.shown}: {error}"]) from None
        try:
            _check_whole(Path(path), version)
        except ConfigError as error:
            said = (mistake.replace(f"{path}/", "") for mistake in error.mistakes)
            raise ConfigError(f"{uri}: {mistake}" for mistake in said) from None
        return read_snapshot(Folder(Path(path) / "artifacts"), GENERATOR)


def _check_whole(path: Path, version: ModelVersion) -> None:
    """Raises ConfigError where a downloaded version is not, to the byte, what was registered."""
    manifest = path / ARTIFACTS / MANIFEST
    if not manifest.is_file():
        raise ConfigError([f"{manifest} is missing"])
    if sha256_of(manifest) != _tag(version, MANIFEST_TAG):
        raise ConfigError([f"{manifest} is not the file that was registered (its sha256 is "
                           f"{sha256_of(manifest)[:12]}, the version's tag {MANIFEST_TAG} says "
                           f"{_tag(version, MANIFEST_TAG)[:12]})"])  # fmt: skip
    record = check_files(path / ARTIFACTS)
    found, listed = other_files(listing(path)), {SERVED: record["served_sha256"]}
    if FILES_TAG in version.tags:
        listed |= json.loads(version.tags[FILES_TAG])
    else:  # an entry that names the manifest only
        found = {name: sha256 for name, sha256 in found.items() if name == SERVED}
    check_listing(found, listed, where=str(path), by="the version")


def _version(
    client: MlflowClient, model: str, *, alias: str | None, number: str | None
) -> ModelVersion:
    try:
        if number is not None:
            return client.get_model_version(model, number)
        assert alias is not None
        return client.get_model_version_by_alias(model, alias)
    except MlflowException as error:
        wanted = f"version {number}" if number is not None else f"version named {alias!r}"
        raise ConfigError(
            [f"the registry has no {wanted} of {model}: {error.message}; {models_at(client)}"]
        ) from None


def _tag(version: ModelVersion, tag: str) -> str:
    if tag not in version.tags:
        raise ConfigError([f"models:/{version.name}/{version.version} was not registered by this "
                           f"Forger: it has no tag {tag}"])  # fmt: skip
    return version.tags[tag]


def _ensure_model(client: MlflowClient, model: str) -> None:
    """Creates the registered model where there is none: who may only add versions needs no more
    where there is one.
    """
    try:
        client.get_registered_model(model)
    except MlflowException as missing:
        if missing.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # somebody else was faster
                raise


def _first_with(client: MlflowClient, model: str, op: str) -> str | None:
    """The lowest version of this op: where a lost response made a second one, the first counts."""
    found = client.search_model_versions(f"name = '{model}' and tags.`{OP}` = '{op}'")
    return str(min(int(version.version) for version in found)) if found else None


def _newest(client: MlflowClient, model: str) -> str:
    """The newest version that counts."""
    newest = client.search_model_versions(
        f"name = '{model}'", max_results=1, order_by=["version_number DESC"]
    )[0]
    first = _first_with(client, model, newest.tags[OP]) if OP in newest.tags else None
    return first or str(newest.version)


def _create(
    client: MlflowClient, model: str, logged: Logged, tags: dict[str, str], *, mlflow_run_id: str
) -> str:
    """Creates the version in one call, tags and all; returns the one that counts."""
    try:
        client.create_model_version(
            model, logged.uri, run_id=mlflow_run_id, tags=tags, model_id=logged.model_id
        )
    except Exception:  # the answer may be lost after the registry had committed
        if _first_with(client, model, tags[OP]) is None:
            raise
    version = _first_with(client, model, tags[OP])
    assert version is not None
    return version


def _tags(run: Run, best: Best, logged: Logged) -> dict[str, str]:
    card = best.card
    return {
        WEIGHTS_TAG: best.sha256,
        MANIFEST_TAG: logged.manifest_sha256,
        FILES_TAG: json.dumps(logged.other_files),
        "forger.run_id": run.id,
        "forger.run_name": run.name,
        "forger.nimg": str(card.nimg),
        "forger.seed": str(run.experiment.seed),
        "forger.data_digest": run.data_digest,
        "forger.experiment_digest": run.experiment.digest,
        "forger.commit": str(run.lineage.get("commit")),
        "forger.played": json.dumps(run.lineage.get("played", [])),
        "forger.judged": json.dumps(card.lineage["judged"]),
        "forger.packages": json.dumps(run.lineage["packages"]),
        **trial_tags(run.lineage),
        **{name: f"{value:.6g}" for name, value in card.scores.items()},
    }

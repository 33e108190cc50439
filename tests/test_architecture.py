"""The house stands: rings, doors, sizes, and commands that answer without the heavy libraries."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RINGS = {"gan": 0, "pipeline": 1, "jobs": 2}
DOORS = {  # vendor: the only modules that may import it
    "ray": {
        "pipeline.cluster",
        "pipeline.job_server",
        "pipeline.meeting",
        "pipeline.nodes",
        "pipeline.preflight.head",
        "pipeline.worker",
        "pipeline.trial",
        "pipeline.tuning",
    },
    "mlflow": {
        "pipeline.backend",
        "pipeline.tracking",
        "pipeline.search_tracking",
        "pipeline.registry",
        "pipeline.logged",
        "pipeline.served",
        "pipeline.proof",
        "pipeline.promotion_log",
        "pipeline.attempts",
        "pipeline.asking",
    },
    "pyarrow": {"pipeline.arrow_files", "pipeline.sources.tables"},
    "boto3": {"pipeline.bucket", "pipeline.patience"},
    "botocore": {"pipeline.bucket", "pipeline.patience"},
    "grpc": {"pipeline.preflight.head"},
    "onnx": {"pipeline.export"},
    "onnxruntime": {"pipeline.export"},
    "onnxscript": {"pipeline.export"},
    "click": {"jobs"},
    "plotly": {"pipeline.search_figures"},
    "optuna": {"pipeline.importance", "pipeline.suggest"},
}
GAN_MAY_IMPORT = {"torch", "numpy", "jaxtyping"} | sys.stdlib_module_names
BANNED_NAMES = {"utils", "helpers", "manager", "base", "misc", "common"}
MAX_FILE_LINES = 400
MODULES = sorted(
    path
    for ring in RINGS
    for path in (ROOT / ring).rglob("*.py")
    if "__pycache__" not in path.parts
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_inner_rings_know_nothing_of_outer_ones(path):
    own = RINGS[module_name(path).split(".")[0]]
    for name in imports(path):
        assert RINGS.get(name.split(".")[0], -1) <= own, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_vendor_has_one_door(path):
    module = module_name(path)
    for name in imports(path):
        doors = DOORS.get(name.split(".")[0])
        if doors is not None:
            assert any(module == d or module.startswith(d + ".") for d in doors), f"{path}: {name}"


def test_the_game_needs_torch_and_numpy_only():
    for path in MODULES:
        if module_name(path).startswith("gan"):
            outside = {name.split(".")[0] for name in imports(path)} - GAN_MAY_IMPORT - {"gan"}
            assert not outside, f"{path} imports {outside}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_says_its_purpose_in_its_first_line_and_stays_one_room(path):
    text = path.read_text()
    assert text.startswith('"""'), f"{path} does not say what it is for"
    assert path.stem not in BANNED_NAMES
    assert len(text.splitlines()) <= MAX_FILE_LINES, f"{path} has outgrown its room"


@pytest.mark.parametrize("path", [p for p in MODULES if "jobs" not in p.parts], ids=module_name)
def test_inner_rings_never_print_and_never_unpickle(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "eval", "exec", "torch.jit.load"), path
            assert not called.startswith("pickle."), path


def test_torch_load_is_called_in_one_file_and_only_for_plain_tensors():
    """Published weights come as torch.save made them; nothing else may, and no code with them."""
    callers = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
                callers.add(module_name(path))
            if isinstance(node, ast.ImportFrom) and node.module in (
                "torch",
                "torch.serialization",
            ):
                assert not {"load", "serialization"} & {alias.name for alias in node.names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert options.get("weights_only") == "True", path
    assert callers == {"pipeline.weights"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import gan.config"],
        ["-c", "import pipeline.experiment_file"],
        ["-c", "import pipeline.space, pipeline.search_checks"],
        ["-c", "import pipeline.standing, pipeline.run"],  # of `forger runs`
        ["-m", "jobs", "--help"],
        ["-m", "jobs", "train", "--help"],
        ["-m", "jobs", "search", "--help"],
        ["-m", "jobs", "report", "--help"],
        ["-m", "jobs", "check", "--help"],
        ["-m", "jobs", "submit", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_checked_experiments_import_no_heavy_library(arguments):
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {
        line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line
    }
    assert "gan.config" in imported or "--help" in arguments
    assert not imported & {"torch", "ray", "mlflow", "pyarrow", "numpy"}


def test_the_stage_sets_rays_environment_before_anything_imports_ray():
    """Ray reads these once, as it is imported; an import moved by a sorter would lose them."""
    program = """
import os, sys

class Witness:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            print(os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"),
                  os.environ.get("RAY_USAGE_STATS_ENABLED"))

sys.meta_path.insert(0, Witness())
import pipeline.train
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0.5", "0"]


@pytest.mark.parametrize("module", sorted(DOORS["mlflow"] - {"pipeline.served", "pipeline.proof"}))
def test_mlflows_environment_is_set_before_mlflow_whichever_of_its_doors_opens_first(module):
    """MLflow begins its telemetry as it is imported. What serves a model is in others' hands."""
    program = f"""
import os, sys

class Witness:
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT"),
                  os.environ.get("MLFLOW_DISABLE_TELEMETRY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Witness())
import {module}
import mlflow
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["15", "true"]

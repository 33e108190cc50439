"""Puts a registered generator together: one flat file of code, and the folder of its weights.

The flat file loads where Forger is not installed. It carries, word for word but for the imports
and the names of shapes, every module of gan/ and pipeline/ that pipeline/served.py needs, so there
is one implementation of the maths. The modules go by a private name with their hash in it: two
generators of different code in one process do not share any.
"""

from __future__ import annotations

import ast
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from pipeline.card import CARD, TENSORS
from pipeline.experiment_file import experiment_toml
from pipeline.lineage import code_and_packages
from pipeline.manifest import MANIFEST, SCHEMA, listing
from pipeline.run import GRID, Best, Run

CHECKOUT = Path(__file__).parents[1]
CARRIED = ("gan", "pipeline")  # the packages that are carried; any other import is a requirement
LEFT_OUT = "jaxtyping"  # only annotations use it, and those stay text
NEEDED = ("mlflow", "numpy", "pillow", "pydantic", "safetensors", "torch")
EXPERIMENT = "experiment.toml"
HEADER = '''"""A generator made by {made_by}, as MLflow runs it.

It needs {needed}; Forger need not be installed.
SOURCES holds Forger's own files, word for word but for the imports. They are imported below a
private name that ends in their hash, so that two generators loaded in one process share no code.
"""

from __future__ import annotations
'''


def this_code() -> str:
    """The version and commit of the Forger that runs."""
    return f"Forger {version('forger')} (commit {code_and_packages()['commit'] or 'unknown'})"


def flat_file(made_by: str, checkout: Path = CHECKOUT) -> str:
    """The registered model's code as one file: pipeline/served.py with all that it imports.

    `made_by` is for readers; `checkout` is where gan/ and pipeline/ are read.
    """
    texts: dict[str, str] = {}
    _collect("pipeline.served", checkout, texts)
    served = texts.pop("pipeline.served")
    root = f"forger_{hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]}"
    carried = {name: _placed(texts[name], root) for name in sorted(texts)}
    assert not any("'''" in text or text.endswith("\\") for text in carried.values())
    parts = [
        HEADER.format(made_by=made_by, needed=", ".join(NEEDED)),
        "SOURCES = {",
        *(f"    {name!r}: r'''{text}'''," for name, text in carried.items()),
        "}\n",
        _body(_read("pipeline.carried", checkout)),
        f"carry({root!r}, SOURCES)\n",
        _body(_placed(served, root)),
    ]
    return "\n".join(parts)


def write_bundle(
    folder: Path, run: Run, best: Best, *, served_sha256: str, mlflow_run_id: str
) -> None:
    """Fills `folder` with the weights and all that reproducing them needs, and a manifest of it.

    `served_sha256` is of the flat file that the folder is registered with.
    """
    folder.mkdir(parents=True)
    for name in (TENSORS, CARD, GRID):
        (folder / name).write_bytes(run.storage.read(f"{best.folder}/{name}"))
    (folder / EXPERIMENT).write_text(experiment_toml(run.experiment))
    lineage = run.lineage
    manifest = {
        "schema": SCHEMA,
        "files": listing(folder),
        "served_sha256": served_sha256,
        "weights_sha256": best.sha256,
        "nimg": best.card.nimg,
        "scores": best.card.scores,
        "judged": best.card.lineage["judged"],
        "seed": run.experiment.seed,
        "experiment_digest": run.experiment.digest,
        "data_digest": run.data_digest,
        "run": {"id": run.id, "name": run.name, "mlflow_run_id": mlflow_run_id},
        "search_id": None,
        **{name: lineage.get(name) for name in ("commit", "python", "machine", "packages")},
        "played": lineage.get("played", []),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def requirements() -> list[str]:
    """What serving needs, at the versions that the generator is registered with."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in NEEDED]


def _path(name: str, checkout: Path) -> Path | None:
    """The file of a carried module; None where `name` is none."""
    if name.partition(".")[0] not in CARRIED:
        return None
    place = checkout / name.replace(".", "/")
    found = [path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()]
    return found[0] if found else None


def _read(name: str, checkout: Path) -> str:
    path = _path(name, checkout)
    assert path is not None, f"{name} is no module of ours"
    return path.read_text()


def _collect(name: str, checkout: Path, texts: dict[str, str]) -> None:
    """Adds the module `name`, its packages, and all of ours that it imports, to `texts`."""
    if name in texts:
        return
    texts[name] = _read(name, checkout)
    wanted = {name.rpartition(".")[0]} - {""}
    for node in _imports(ast.parse(texts[name])):
        module = node.module or ""
        wanted |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    for module in sorted(wanted):
        if _path(module, checkout):
            _collect(module, checkout, texts)


def _imports(tree: ast.AST) -> list[ast.ImportFrom]:
    """The imports that run: all but those below `if TYPE_CHECKING`."""
    found: list[ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            found.append(node)
        found += _imports(node)
    return found


def _placed(text: str, root: str) -> str:
    """The text with its imports of ours taken from below `root`, and jaxtyping's left out."""
    lines, tree = text.splitlines(), ast.parse(text)
    left_out: list[ast.stmt] = []
    for node in _imports(tree):
        package = (node.module or "").partition(".")[0]
        if package == LEFT_OUT:
            names = {alias.asname or alias.name for alias in node.names}
            left_out += [node, *(other for other in tree.body if _names_a_shape(other, names))]
        elif package in CARRIED:
            start = node.lineno - 1
            lines[start] = lines[start].replace(f"from {package}", f"from {root}.{package}", 1)
    for node in left_out:
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return "\n".join(lines) + "\n"


def _names_a_shape(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement is as `Images = Float[Tensor, "n c h w"]`, for annotations alone."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Subscript)
        and isinstance(node.value.value, ast.Name)
        and node.value.value.id in names
    )


def _body(text: str) -> str:
    """A module's text from its first own statement on: no docstring, no __future__."""
    tree = ast.parse(text)
    first = next(
        node
        for node in tree.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    )
    return "\n".join(text.splitlines()[first.lineno - 1 :]) + "\n"

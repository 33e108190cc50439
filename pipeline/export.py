"""A generator as ONNX, for serving without torch: written, and checked against torch's images."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gan.config import ConfigError
from gan.randomness import public_labels, public_latents
from gan.sampling import to_uint8
from pipeline.folder import Folder
from pipeline.snapshot import Snapshot

SEEDS = np.arange(16)
TOLERANCE = 1e-4  # of a value in [-1, 1], whose byte is 8e-3 wide; runtimes differ by some 1e-6


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX file, and how far from the exact images it draws."""

    path: Path
    num_bytes: int
    max_abs_diff: float  # of values in [-1, 1], over 16 seeds
    num_pixels_off: int  # of their bytes, by one each
    num_pixels: int


class _Unlabelled(nn.Module):
    """A generator without classes, as a function of the latent alone."""

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z, None)


def export_onnx(snapshot: Snapshot, destination: str) -> Exported:
    """Writes the generator to `destination` as a function for any n: z (n, latent_dim) float32
    and, where it knows classes, labels (n,) int64, to images (n, c, h, w) float32 in [-1, 1].

    ONNX runtimes compute in float32, so a byte may differ by one from `forger sample`, rarely. The
    file is published once a runtime has drawn from it. Raises ConfigError where the extra is not
    installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ConfigError(
            [f"exporting needs {error.name}: pip install -e '.[onnx]' in Forger's source"]
        ) from None
    if not destination.endswith(".onnx"):
        raise ConfigError([f"the file must end in .onnx, got {destination!r}"])
    card, exact = snapshot.card, snapshot.exact
    z = public_latents(SEEDS, latent_dim=card.generator.latent_dim)
    labels = None
    if snapshot.num_classes:
        labels = public_labels(SEEDS, num_classes=snapshot.num_classes)
    program = _program(snapshot, z, labels)
    facts = {
        "forger.sha256": snapshot.sha256,
        "forger.nimg": str(card.nimg),
        "forger.num_classes": str(snapshot.num_classes),
    }
    onnx.helper.set_model_props(program, facts)
    folder = Folder(Path(destination).expanduser().resolve().parent)
    with folder.publishing(Path(destination).name) as part:
        data = program.SerializeToString()
        part.write_bytes(data)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        feed = {"z": z.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        whole = np.asarray(session.run(None, feed)[0])
        first = {name: value[:1] for name, value in feed.items()}
        alone = np.asarray(session.run(None, first)[0])
        with torch.no_grad():
            expected = exact(z.double(), labels)
        drawn = torch.from_numpy(np.concatenate([alone, whole[1:]]))
        off = (drawn - expected).abs().max().item()
        if not off <= TOLERANCE:
            raise RuntimeError(f"the ONNX model draws values that are {off:.2g} off; not written")
    differ = int((to_uint8(drawn) != to_uint8(expected)).sum())
    return Exported(Path(destination), len(data), off, differ, drawn.numel())


def _program(snapshot: Snapshot, z: Tensor, labels: Tensor | None):
    """The generator as an ONNX model, in float32, with the batch left open."""
    module = copy.deepcopy(snapshot.module).float().cpu()
    batch = torch.export.Dim("n")
    names = ["z"] if labels is None else ["z", "labels"]
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they tell of every pass
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Unlabelled(module) if labels is None else module,
            (z,) if labels is None else (z, labels),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["images"],
            dynamic_shapes=tuple({0: batch} for _ in names),
        )
    assert program is not None
    return program.model_proto

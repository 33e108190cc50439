"""The other arm's training: Ray Train as its guides show it, MLflow straight from rank 0.

`python -m tests.chaos.textbook NAME STORAGE FOLDER`: the patterns of docs.ray.io
(train/user-guides: checkpoints, fault tolerance, experiment tracking) with the DCGAN tutorial's
loop. The only additions are the files in FOLDER that say how far it is.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from tests.chaos.game import stripes

EPOCHS, IMAGES, BATCH_SIZE, LATENT_DIM, LOG_STEPS = 10, 2048, 16, 8, 8
STEPS = IMAGES // BATCH_SIZE
FILE = "checkpoint.pt"


def dataset() -> TensorDataset:
    """The stripes in [-1, 1]."""
    images = [torch.from_numpy(image).permute(2, 0, 1) for image, _ in stripes(IMAGES)]
    return TensorDataset(torch.stack(images).float() / 127.5 - 1)


def players(width: int = 8) -> tuple[nn.Module, nn.Module]:
    """A DCGAN for 16 px."""
    G = nn.Sequential(
        nn.ConvTranspose2d(LATENT_DIM, 2 * width, 4), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    D = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 4), nn.Flatten(),
    )  # fmt: skip
    return G, D


def train_func(config: dict[str, Any]) -> None:
    """What each worker does."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = Path(config["folder"])
    context = ray.train.get_context()
    first, share = context.get_world_rank() == 0, BATCH_SIZE // context.get_world_size()
    G, D = (prepare_model(player) for player in players())
    # One process takes a whole batch, two take half of one each.
    loader = prepare_data_loader(DataLoader(dataset(), batch_size=share, shuffle=True))
    G_optimizer = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.999))
    D_optimizer = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.5, 0.999))
    parts = {"G": G, "D": D, "G_optimizer": G_optimizer, "D_optimizer": D_optimizer}
    begin = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as saved:
            state = torch.load(Path(saved, FILE), weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        begin = state["epoch"] + 1
    if first:
        with (folder / "resumed").open("a") as file:
            file.write(f"{time.time()} {begin * IMAGES}\n")
        mlflow.set_tracking_uri(config["mlflow"])
        mlflow.set_experiment("plain")
        mlflow.start_run(run_name=config["name"])
    for epoch in range(begin, EPOCHS):
        if context.get_world_size() > 1:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        losses: dict[str, float] = {}
        for step, (real,) in enumerate(loader, start=epoch * STEPS):
            losses = play_turns(real, G, D, G_optimizer, D_optimizer)
            if first and step % LOG_STEPS == 0:
                mlflow.log_metrics(losses, step=step)
                (folder / "progress").write_text(str(step * BATCH_SIZE))
        with tempfile.TemporaryDirectory() as saved:
            checkpoint = None
            if first:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save(state | {"epoch": epoch}, Path(saved, FILE))
                checkpoint = Checkpoint.from_directory(saved)
            ray.train.report(losses, checkpoint=checkpoint)
        if first:
            (folder / "saved").write_text(str((epoch + 1) * IMAGES))
    if first:
        mlflow.end_run()


def play_turns(real, G, D, G_optimizer, D_optimizer) -> dict[str, float]:
    """One step of D, one of G."""
    ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
    fake = G(torch.randn(len(real), LATENT_DIM, 1, 1))
    D_optimizer.zero_grad()
    both = D(torch.cat([real, fake.detach()]))
    d_loss = binary_cross_entropy_with_logits(both, torch.cat([ones, zeros]))
    d_loss.backward()
    D_optimizer.step()
    G_optimizer.zero_grad()
    g_loss = binary_cross_entropy_with_logits(D(fake), ones)
    g_loss.backward()
    G_optimizer.step()
    return {"d_loss": d_loss.item(), "g_loss": g_loss.item()}


def main() -> None:
    """Trains, and keeps the last checkpoint's state in FOLDER."""
    name, storage, folder = sys.argv[1:]
    ray.init(log_to_driver=False, include_dashboard=False, object_store_memory=128 * 2**20)
    trainer = TorchTrainer(
        train_func,
        train_loop_config={
            "name": name,
            "folder": folder,
            "mlflow": os.environ["MLFLOW_TRACKING_URI"],
        },
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=name, storage_path=storage, failure_config=FailureConfig(max_failures=3)
        ),
    )
    result = trainer.fit()
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as saved:
        state = torch.load(Path(saved, FILE), weights_only=True)
    torch.save(state, Path(folder, "final.pt"))


if __name__ == "__main__":
    # Workers import a training function's module, unless it is __main__, which has none for them.
    from tests.chaos import textbook

    textbook.main()

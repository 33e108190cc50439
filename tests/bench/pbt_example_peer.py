"""Ray's own example of PBT on a GAN, on given digits and for a given number of images.

    PYTHON tests/bench/pbt_example_peer.py FOLDER

Run by `tests.bench.pbt_example` with another interpreter, which has torchvision; imports nothing
of Forger. The networks, the loop, the checkpoints, the scheduler's settings and the search space
are those of `ray.tune.examples.pbt_dcgan_mnist.pbt_dcgan_mnist_func`. Other than there are: the
data loader, the end, the network of the inception score, and `checkpoint_interval` (see NOTES).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import ray
import torch
from ray import tune
from ray.tune.examples.pbt_dcgan_mnist import pbt_dcgan_mnist_func as example
from ray.tune.examples.pbt_dcgan_mnist.common import (
    MODEL_PATH,
    Generator,
    Net,
    batch_size,
    nz,
    train_iterations_per_step,
)
from ray.tune.schedulers import PopulationBasedTraining
from torch import nn
from torch.nn import functional as F

MEMBERS = 8
# Its main block leaves this setting out, and its trials end with KeyError. Ray's guide to PBT has
# 5; but a trial that is paused before so many steps begins again, on a slow machine for ever.
CHECKPOINT_INTERVAL = 1
HELD_OUT = 10_000
EPOCHS = 2
NOTES = (
    "the data: the digits of this bench, from memory, instead of torchvision's MNIST",
    "the end: a number of images for all members together, instead of 300 iterations each",
    "the inception score: its network trained here on the same digits, instead of a download",
    f"checkpoint_interval = {CHECKPOINT_INTERVAL}: its main block leaves it out (KeyError)",
)


class Digits:
    """Stands in for its DataLoader: batches of one epoch in random order, and a tally of images.

    `scale` is what black and white become. The images of a batch are counted when the next one is
    asked for: its loop takes one batch more than it plays.
    """

    def __init__(self, images: str, tally: str, scale: tuple[float, float]):
        self.images, self.tally, self.scale = np.load(images, mmap_mode="r"), tally, scale

    def __len__(self) -> int:
        return -(-len(self.images) // batch_size)

    def __iter__(self):
        for rows in torch.randperm(len(self.images)).split(batch_size):
            yield [scaled(torch.from_numpy(self.images[rows.numpy()]), self.scale)]
            with open(self.tally, "a") as file:
                file.write(f"{len(rows)}\n")


def scaled(images: torch.Tensor, scale: tuple[float, float]) -> torch.Tensor:
    """uint8 images as the networks see them."""
    black, white = scale
    return black + images.float() / 255 * (white - black)


def counted(tally: str) -> int:
    """Images that the discriminators of all members saw."""
    path = Path(tally)
    return sum(map(int, path.read_text().split())) if path.exists() else 0


class Budget(tune.Stopper):
    """Ends the population once all members together have seen so many images."""

    def __init__(self, tally: str, images: int):
        self.tally, self.images = tally, images

    def __call__(self, trial_id: str, result: dict) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        return counted(self.tally) >= self.images


def score_network(job: dict) -> tuple[Net, float]:
    """Its LeNet, trained on the digits as its inception score shows them, and its accuracy on
    those held out; saved where the example looks for it.
    """
    torch.manual_seed(0)
    images = torch.from_numpy(np.load(job["images"]))
    labels = torch.from_numpy(np.load(job["labels"]))
    up = nn.Upsample(size=(28, 28), mode="bilinear")
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    count = len(images) - HELD_OUT
    for _ in range(EPOCHS):
        for rows in torch.randperm(count).split(128):
            optimizer.zero_grad()
            F.nll_loss(net(up(scaled(images[rows], job["scale"]))), labels[rows]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        guesses = [net(up(scaled(x, job["scale"]))).argmax(1) for x in images[count:].split(1000)]
    Path(MODEL_PATH).parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), MODEL_PATH)
    return net, float((torch.cat(guesses) == labels[count:]).float().mean())


def search(job: dict, mnist_cnn: Net) -> tune.ResultGrid:
    """Its main block, from ray.put on."""

    def trial(config: dict) -> None:
        data = Digits(job["images"], job["tally"], job["scale"])
        example.get_data_loader = lambda *_: data  # pyright: ignore
        example.dcgan_train(config)

    mnist_model_ref = ray.put(mnist_cnn)
    scheduler = PopulationBasedTraining(
        perturbation_interval=5,
        hyperparam_mutations={
            "netG_lr": lambda: np.random.uniform(1e-2, 1e-5),
            "netD_lr": lambda: np.random.uniform(1e-2, 1e-5),
        },
    )
    tuner = tune.Tuner(
        trial,
        run_config=tune.RunConfig(
            name="pbt_dcgan_mnist", stop=Budget(job["tally"], job["budget_nimg"]), verbose=1
        ),
        tune_config=tune.TuneConfig(
            metric="is_score", mode="max", num_samples=MEMBERS, scheduler=scheduler
        ),
        param_space={
            "netG_lr": tune.choice([0.0001, 0.0002, 0.0005]),
            "netD_lr": tune.choice([0.0001, 0.0002, 0.0005]),
            "mnist_model_ref": mnist_model_ref,
            "checkpoint_interval": CHECKPOINT_INTERVAL,
        },
    )
    return tuner.fit()


@torch.no_grad()
def samples(state: dict, count: int, scale: tuple[float, float]) -> np.ndarray:
    """uint8 images of a generator, drawn as its demo_gan draws them: 64 at once, normalized by
    their own statistics.
    """
    torch.manual_seed(0)
    net, found = Generator(), []
    net.load_state_dict(state)
    black, white = scale
    for _ in range(0, count, 64):
        images = (net(torch.randn(64, nz, 1, 1)) - black) / (white - black)
        found.append((images * 255).round().clamp(0, 255).byte())
    return torch.cat(found)[:count].numpy()


def members_of(results: tune.ResultGrid, job: dict) -> list[dict]:
    """Each member that came to a checkpoint; its samples are written beside the job."""
    best, found = results.get_best_result(), []
    for number in range(len(results)):
        result = results[number]
        metrics = result.metrics or {}
        if result.checkpoint is None:
            print(f"member {number} came to no checkpoint ({result.error})")
            continue
        with result.checkpoint.as_directory() as folder:
            kept = torch.load(Path(folder) / "checkpoint.pt")
        file = f"member-{number}.npy"
        np.save(
            Path(job["folder"]) / file, samples(kept["netGmodel"], job["samples"], job["scale"])
        )
        rates = {name: kept[key]["param_groups"][0]["lr"]
                 for name, key in (("lr G", "optimG"), ("lr D", "optimD"))}  # fmt: skip
        told = {"steps": kept["step"], **rates, "is_score": metrics.get("is_score")}
        found.append({"file": file, "chosen": result.path == best.path, "told": told})
    return found


def main(folder: str) -> None:
    """Plays the job in FOLDER/job.json and writes FOLDER/result.json."""
    job = json.loads((Path(folder) / "job.json").read_text()) | {"folder": folder}
    (Path.home() / "ray_results").mkdir(exist_ok=True)  # its FileLock is there
    assert batch_size * train_iterations_per_step == 320
    Path(job["tally"]).unlink(missing_ok=True)
    net, accuracy = score_network(job)
    began = time.perf_counter()
    ray.init()
    results = search(job, net)
    seconds = time.perf_counter() - began
    notes = [*NOTES, f"that network tells {accuracy:.2%} of {HELD_OUT} held-out digits"]
    notes += [f"a trial ended with {error!r:.200}" for error in results.errors]
    found = {
        "images": counted(job["tally"]),
        "seconds": seconds,
        "members": members_of(results, job),
        "notes": [*notes, f"ray {ray.__version__}, torch {torch.__version__}"],
    }
    (Path(folder) / "result.json").write_text(json.dumps(found, indent=1))
    ray.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main(sys.argv[1])

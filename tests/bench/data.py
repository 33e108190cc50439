"""Random global batches of images per second, ours against what people use, on the same images.

    python -m tests.bench data

60,000 images of 32 px or 10,000 of 128 px, RGB, batches of 256 or 64 as uint8 tensors, files in
the page cache. Each side runs in a process of its own, in turn, because the machine drifts; on one
core, but for peers that start processes of their own, which may have them all. A NumPy memory map
is the limit. PEERS_PYTHON names an interpreter with webdataset and datasets (and torch).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SIZES = {32: (60_000, 256), 128: (10_000, 64)}  # images and batch by pixels
ROUNDS, WARM_UP_BATCHES, SECONDS = 5, 20, 3.0
MANY_CORES = ("DataLoader, 2 workers", "Ray Data")
MANY = 10**8


def images_of(count: int, size_px: int) -> Iterator[np.ndarray]:
    """Smooth colours with a little noise: they compress about as photos do."""
    from PIL import Image

    rng = np.random.RandomState(0)
    for _ in range(count):
        coarse = Image.fromarray(rng.randint(0, 256, (5, 5, 3), np.uint8))
        smooth = np.asarray(coarse.resize((size_px, size_px), Image.Resampling.BICUBIC))
        noise = rng.randint(-6, 7, smooth.shape)
        yield (smooth + noise).clip(0, 255).astype(np.uint8)


def write_data(folder: Path, size_px: int, peers: bool) -> None:
    """The same images as a NumPy file, our shards, PNG files, a zip, a tar and Parquet."""
    from PIL import Image

    from pipeline.shards import write_shards

    count, _ = SIZES[size_px]
    images = np.stack(list(images_of(count, size_px)))
    np.save(folder / "images.npy", images)
    write_shards(str(folder / "shards"), ((i, -1) for i in images), classes=(), origin={})
    (folder / "png").mkdir()
    with (
        zipfile.ZipFile(folder / "images.zip", "w") as packed,
        tarfile.open(folder / "images.tar", "w") as tar,
    ):
        for number, image in enumerate(images):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            (folder / "png" / f"{number:05d}.png").write_bytes(file.getvalue())
            packed.writestr(f"{number:05d}.png", file.getvalue())
            entry = tarfile.TarInfo(f"{number:05d}.png")
            entry.size = len(file.getvalue())
            tar.addfile(entry, io.BytesIO(file.getvalue()))
    _in_process(sys.executable, "write-ray", folder, size_px)
    if peers:
        _in_process(os.environ["PEERS_PYTHON"], "write-hf", folder, size_px)


def write_ray(folder: Path) -> None:
    """Ray's own Parquet of tensors."""
    blocks = np.array_split(np.load(folder / "images.npy"), 8)
    _ray().from_numpy(list(blocks)).write_parquet(str(folder / "ray"))


def write_hf(folder: Path) -> None:
    """Hugging Face's Arrow files of PNG bytes."""
    from datasets import Dataset, Features, Image  # type: ignore[import-not-found]

    paths = sorted(map(str, (folder / "png").iterdir()))
    columns = {"image": [{"bytes": Path(p).read_bytes(), "path": None} for p in paths]}
    Dataset.from_dict(columns, Features({"image": Image()})).save_to_disk(str(folder / "hf"))


def memory_map(folder: Path, batch: int) -> Iterator[Any]:
    """The limit: rows of one mapped file in an order that is drawn beforehand."""
    import torch

    images = np.load(folder / "images.npy", mmap_mode="r")
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            taken = images.take(order[start : start + batch], axis=0)
            yield torch.from_numpy(taken).permute(0, 3, 1, 2)


def ours(folder: Path, batch: int, **settings: Any) -> Iterator[Any]:
    """Shards as `forger train` reads them."""
    from gan.world import World
    from pipeline.data_config import DataConfig
    from pipeline.dataset import open_shards
    from pipeline.loader import batches
    from pipeline.shards import ShardReader

    reader = ShardReader(open_shards(str(folder / "shards")))
    options = {"seed": 0, "batch_size": batch, "first_batch": 0, "world": World()}
    for taken in batches(reader, data=DataConfig(**settings), **options):
        yield taken.samples


def ours_windowed(folder: Path, batch: int) -> Iterator[Any]:
    """As for a remote set whose shards are in the cache."""
    return ours(folder, batch, shuffle="window", window=2048)


class Pngs:
    """A map-style data set of PNG files, as torchvision's ImageFolder reads them."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Any:
        import torch
        from PIL import Image

        with Image.open(self.paths[number]) as image:
            return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


class Zipped(Pngs):
    """The same files in one zip."""

    def __init__(self, path: Path):
        self.zip = zipfile.ZipFile(path)
        super().__init__(self.zip.namelist())

    def __getitem__(self, number: int) -> Any:
        import torch
        from PIL import Image

        with Image.open(io.BytesIO(self.zip.read(self.paths[number]))) as image:
            return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def data_loader(data: Any, batch: int, *, workers: int = 0) -> Iterator[Any]:
    """PyTorch's loader, shuffled, its workers kept between epochs."""
    from torch.utils.data import DataLoader

    loader = DataLoader(data, batch, shuffle=True, num_workers=workers, drop_last=True,
                        persistent_workers=workers > 0)  # fmt: skip
    while True:
        yield from loader


def pngs(folder: Path, batch: int, *, workers: int = 0) -> Iterator[Any]:
    """DataLoader over a folder of PNG files."""
    paths = sorted(map(str, (folder / "png").iterdir()))
    return data_loader(Pngs(paths), batch, workers=workers)


def _ray() -> Any:
    """Ray Data on a Ray of its own, which ends with the process: threads of an endless stream may
    ask it to the last.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False,
             configure_logging=False)  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray.data


def ray_data(folder: Path, batch: int) -> Iterator[Any]:
    """Shuffled in a buffer of four batches, the nearest that it has to a random order."""
    images = _ray().read_parquet(str(folder / "ray"), shuffle="files")
    while True:
        for taken in images.iter_torch_batches(
            batch_size=batch, local_shuffle_buffer_size=4 * batch, drop_last=True
        ):
            yield taken["data"].permute(0, 3, 1, 2)


def web_dataset(folder: Path, batch: int) -> Iterator[Any]:
    """One tar, shuffled in a buffer of a thousand."""
    import torch
    import webdataset as wds  # type: ignore[import-not-found]

    stream = wds.WebDataset(str(folder / "images.tar"), shardshuffle=False).repeat().shuffle(1000)
    decoded = stream.decode("rgb8").to_tuple("png")
    for (images,) in decoded.batched(batch, partial=False):
        yield torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)


def hugging_face(folder: Path, batch: int) -> Iterator[Any]:
    """Mapped Arrow files of PNG bytes, as torch tensors by a DataLoader."""
    from datasets import load_from_disk  # type: ignore[import-not-found]

    def tensors(rows: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"image": [torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in rows["image"]]}

    data = load_from_disk(str(folder / "hf")).with_transform(tensors)
    return (taken["image"] for taken in data_loader(data, batch))


SIDES = {
    "NumPy memory map": memory_map,
    "ours": ours,
    "ours, shuffle = 'window'": ours_windowed,
    "DataLoader": pngs,
    "DataLoader, 2 workers": lambda folder, batch: pngs(folder, batch, workers=2),
    "zip": lambda folder, batch: data_loader(Zipped(folder / "images.zip"), batch),
    "Ray Data": ray_data,
}
PEERS = {"WebDataset": web_dataset, "Hugging Face datasets": hugging_face}


def speed_of(side: str, folder: Path, size_px: int) -> dict[str, float]:
    """Images a second of one side; run in a process of its own."""
    import torch

    torch.set_num_threads(1)
    if side not in MANY_CORES:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _, batch = SIZES[size_px]
    stream = (SIDES | PEERS)[side](folder, batch)
    for taken in itertools.islice(stream, WARM_UP_BATCHES):
        assert taken.shape == (batch, 3, size_px, size_px)
        assert taken.dtype == torch.uint8
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        next(stream)
        count += batch
    speed = count / (time.perf_counter() - begun)
    stream.close()  # type: ignore[attr-defined]
    return {"img_per_sec": speed}


def start_of(folder: Path) -> dict[str, float]:
    """Seconds and memory from an index of 10^8 images to the numbers of a batch in mid-epoch."""
    from pipeline.data_config import DataConfig
    from pipeline.dataset import open_shards
    from pipeline.loader import order_of
    from pipeline.shards import ShardReader

    found = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shuffle in ("full", "window"):
        begun = time.perf_counter()
        reader = ShardReader(open_shards(str(folder)))
        order = order_of(DataConfig(shuffle=shuffle), reader, seed=0)
        order.numbers(np.arange(256) + 5 * MANY // 3)
        found[f"{shuffle} seconds"] = time.perf_counter() - begun
    found["mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return found


def permutation_of() -> dict[str, float]:
    """What a table of the order takes, as PyTorch's samplers make it."""
    import torch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    torch.randperm(MANY)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            - before / 1000}  # fmt: skip


def write_index(folder: Path) -> None:
    """The index of 10^8 images of 32 px, without the images."""
    from pipeline.dataset import INDEX, Shard, ShardSet, index_of

    per_shard = 64 * 2**20 // 3072
    counts = [per_shard] * (MANY // per_shard) + [MANY % per_shard]
    shards = ShardSet(
        uri=str(folder), num_images=MANY, image_size_px=32, channels=3, classes=(), digest="0",
        shards=tuple(Shard(f"shard-{n:05d}-{n:012x}.arrow", count, f"{n:064x}", count * 3080)
                     for n, count in enumerate(counts)),
    )  # fmt: skip
    (folder / INDEX).write_bytes(index_of(shards))


def main(words: list[str] | None = None) -> None:
    """Prints images a second of every side, and its ratio to the memory map in the same round."""
    peers = bool(os.environ.get("PEERS_PYTHON"))
    if not peers:
        print("data: PEERS_PYTHON names no interpreter with webdataset and datasets,")
        print("so these two are left out")
    for size_px in map(int, words or map(str, SIZES)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data(folder, size_px, peers)
            _table(folder, size_px, [*SIDES, *(PEERS if peers else ())])
    with tempfile.TemporaryDirectory() as name:
        write_index(Path(name))
        print(f"\nan index of 10^8 images: {_in_process(sys.executable, 'start', Path(name))}")
        print(f"torch.randperm(10^8): {_in_process(sys.executable, 'permutation', Path(name))}")


def _table(folder: Path, size_px: int, sides: list[str]) -> None:
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side in sides:
            python = os.environ["PEERS_PYTHON"] if side in PEERS else sys.executable
            found[side].append(_in_process(python, side, folder, size_px)["img_per_sec"])
    print(f"\n| {size_px} px, batches of {SIZES[size_px][1]} | images/s | of the memory map |")
    print("|---|---|---|")
    limit = found["NumPy memory map"]
    for side, speeds in found.items():
        parts = sorted(speed / most for speed, most in zip(speeds, limit, strict=True))
        print(f"| {side} | {median(speeds):,.0f} | {median(parts):.3f} ({parts[0]:.3f} to "
              f"{parts[-1]:.3f}) |", flush=True)  # fmt: skip


def _in_process(python: str, what: str, folder: Path, size_px: int = 0) -> dict[str, float]:
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [python, "-W", "ignore", "-m", "tests.bench.data", what, str(folder), str(size_px)],
        cwd=ROOT,
        env=os.environ | one_thread | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    what, where, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    writers = {"write-ray": write_ray, "write-hf": write_hf}
    if what in writers:
        writers[what](where)
        print("{}")
    elif what == "start":
        print(json.dumps(start_of(where)))
    elif what == "permutation":
        print(json.dumps(permutation_of()))
    else:
        print(json.dumps(speed_of(what, where, size)))

"""Images a second and core: `forger prepare` against a plain Pillow loop; and on two cores.

    python -m tests.bench prepare

JPEG files of 256 px, from the page cache, to 64 px by Lanczos: the loop opens, converts, crops,
scales and appends raw bytes to one file; `prepare` also checks, counts, hashes, shuffles, writes
Arrow with checksums, an index and a report. CPU seconds are compared one process against one, wall
seconds two processes against one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.bench.data import images_of

COUNT, FROM_PX, TO_PX, ROUNDS = 6000, 256, 64, 5


def main() -> None:
    """Prints the two ratios: median over pairs, and their range."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for number, image in enumerate(images_of(COUNT, FROM_PX)):
            Image.fromarray(image).save(folder / "photos" / f"{number:05d}.jpg", quality=90)
        each, wide = [], []
        for number in range(ROUNDS):
            loop = _seconds("loop", folder / "photos", folder / f"loop-{number}")[0]
            cpu, alone = _seconds("ours", folder / "photos", folder / f"one-{number}", 1)
            both = _seconds("ours", folder / "photos", folder / f"two-{number}", 2)[1]
            each.append(loop / cpu)
            wide.append(alone / both)
            print(f"{COUNT / loop:,.0f} images a CPU second in the loop, {COUNT / cpu:,.0f} in "
                  f"prepare; {COUNT / alone:,.0f} a second with one process, "
                  f"{COUNT / both:,.0f} with two", flush=True)  # fmt: skip
    for what, ratios in (("prepare / Pillow loop, images a CPU second", each),
                         ("prepare: two processes / one, images a second", wide)):  # fmt: skip
        print(f"{what}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _seconds(what: str, *words: object) -> tuple[float, float]:
    """CPU and wall seconds of one side in a process of its own, after its imports."""
    command = [sys.executable, "-m", "tests.bench.prepare", what, *map(str, words)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    cpu, wall = done.stdout.split()[-2:]
    return float(cpu), float(wall)


def loop(source: str, destination: str) -> None:
    """The textbook's way."""
    from PIL import Image

    with open(destination, "wb") as out:
        for path in sorted(Path(source).iterdir()):
            with Image.open(path) as image:
                square = min(image.size)
                left, top = (image.width - square) // 2, (image.height - square) // 2
                box = (left, top, left + square, top + square)
                out.write(image.convert("RGB").resize(
                    (TO_PX, TO_PX), Image.Resampling.LANCZOS, box).tobytes())  # fmt: skip


def ours(source: str, destination: str, processes: str) -> None:
    """The product's."""
    from pipeline.prepare import prepare

    shards = prepare(source, destination, size_px=TO_PX, encoding="raw", processes=int(processes))
    assert shards.num_images == COUNT


if __name__ == "__main__":
    from PIL import Image as Image  # both sides have it loaded before the clock starts

    import pipeline.prepare  # noqa: F401

    wanted = {"loop": loop, "ours": ours}[sys.argv[1]]
    before, began = os.times(), time.perf_counter()
    wanted(*sys.argv[2:])
    after, ended = os.times(), time.perf_counter()
    used = sum(after[:4]) - sum(before[:4])
    print(used, ended - began)

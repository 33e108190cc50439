#!/usr/bin/env bash
# Writes infra/locks/{cpu,cuda}.txt: every package of the images, by version and sha256. Run it after
# pyproject.toml changed or to take newer releases, and commit what it writes.
#
# It needs uv (pip install uv). cuda.txt has PyPI's torch, which brings its CUDA libraries; cpu.txt has
# the CPU build, from PyTorch's own index or from a folder of wheels: TORCH_CPU=/folder infra/lock.sh
set -euo pipefail
cd "$(dirname "$0")/.."
TORCH_CPU=${TORCH_CPU:-https://download.pytorch.org/whl/cpu}
how=(--extra server --extra onnx --python-version 3.11 --python-platform x86_64-manylinux_2_28
  --generate-hashes --no-annotate --no-header --quiet)
mkdir -p infra/locks
uv pip compile pyproject.toml "${how[@]}" "$@" -o infra/locks/cuda.txt
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' infra/locks/cuda.txt)
uv pip compile pyproject.toml "${how[@]}" "$@" -o infra/locks/cpu.txt \
  --find-links "$TORCH_CPU" --constraint <(echo "torch==$torch+cpu")

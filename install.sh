#!/usr/bin/env bash
# Installs Megaphone and all it needs into the Python given: ./install.sh .venv/bin/python
#
# It does what no requirement list can say:
# - torch's build follows the machine: the CPU build where there is no NVIDIA GPU and the package index has one.
# - DeepSpeed is built from source and needs torch for that, so it comes after torch.
# - Some packages are wanted for the files they carry and installed without their own requirements.
# - torchaudio's compiled extension is linked against CUDA. torchaudio counts a missing extension as "not available"
#   and works without, but a broken one fails its import, and with it transformers'. On a CPU-only torch it is removed.
set -euo pipefail
cd "$(dirname "$0")"

python="${1:?usage: ./install.sh <python of a virtual environment>}"
torch_version=2.13.0
install() { "$python" -m pip --disable-pip-version-check -qq install "$@"; }
say() { echo "install: $*"; }

say "torch ${torch_version}"
if nvidia-smi >/dev/null 2>&1; then
    install --constraint constraints.txt "torch==${torch_version}"
elif ! install --constraint constraints.txt "torch==${torch_version}+cpu" 2>/dev/null; then
    say "the package index has no CPU build; the default one serves, it is only larger"
    install --constraint constraints.txt "torch==${torch_version}"
fi

say "megaphone and its requirements"
install --constraint constraints.txt --editable ".[quickstart,data,s3,lint,test]"

# DeepSpeed's build asks torch and, told of no other accelerator, for CUDA's compiler. Its operators are compiled at run
# time where a config asks for one; Megaphone's engine asks for none.
say "deepspeed, without its operators"
(
    export DS_ACCELERATOR=cpu DS_BUILD_OPS=0
    install --no-build-isolation --constraint constraints.txt deepspeed
)

say "packages wanted for what they carry"
install --no-deps --requirement constraints-no-deps.txt

say "libraries that tests and benchmarks compare with"
peers="$(dirname "$python")/../peers"
rm -rf "$peers"
install --no-deps --target "$peers" --requirement constraints-peers.txt

vllm="$(dirname "$python")/../vllm"
triton="$(dirname "$python")/../triton"
rm -rf "$vllm" "$triton"
if ! nvidia-smi >/dev/null 2>&1; then
    install --no-deps --target "$vllm" --requirement constraints-vllm.txt
    install --no-deps --target "$triton" --requirement constraints-triton.txt
fi

DS_ACCELERATOR=cpu "$python" -W ignore - <<'PYTHON'
import importlib.metadata
import pathlib

import torch

if torch.version.cuda is None:
    carried = importlib.metadata.distribution("torchaudio").locate_file("torchaudio/lib")
    for library in pathlib.Path(str(carried)).glob("*.so"):
        library.unlink()

import deepspeed  # noqa: E402
import megatron.core  # noqa: E402
import torchaudio  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

build = "CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
print(f"install: torch {torch.__version__} ({build}), torchaudio {torchaudio.__version__}, "
      f"megatron-core {megatron.core.__version__}, deepspeed {deepspeed.__version__}, {LlamaForCausalLM.__name__} imports")
PYTHON

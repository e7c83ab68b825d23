"""What a GPU, its links and the software on it do in a second: the planner's constants, each with its source.

Data sheets give peaks. What training reaches of them are shares by generation of chips, `Reached`: `matmul`,
`attention` and `edge` were fitted to the rows of tests/launch/planner/published.yaml that say so
(tests/benchmarks/planner.py --fit), which all other rows there test; `memory`, `nvlink` and `network` were set
beforehand, our choice: what large copies and collectives commonly reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from runtime.exits import BadInput

GIB = 2**30


@dataclass(frozen=True)
class Reached:
    """What a generation of GPUs reaches in training. matmul, attention: of the dense bf16 peak, by large products and
    by fused attention (its backward pass multiplies 5 times where the forward pass does twice: Dao 2023, 2307.08691,
    section 3.1); edge: a product of m x k by k x n costs 1 + edge (1/m + 1/k + 1/n) of what its FLOPs say, as tiles,
    operands and results are read and written at its faces; memory: of the memory's bandwidth, by what adds,
    normalises and activates; nvlink, network: of their bandwidths, by large collectives."""

    matmul: float
    attention: float
    edge: float
    memory: float
    nvlink: float
    network: float


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and where it stands. peak: FLOP/s, dense bf16; memory: bytes; bandwidth, nvlink, network: bytes/s
    of its memory, to the GPUs of its node and to others, each way; node: GPUs that NVLink joins."""

    name: str
    peak: float
    memory: float
    bandwidth: float
    nvlink: float
    network: float
    reached: Reached
    node: int = 8


AMPERE = Reached(matmul=0.74, attention=0.52, edge=124.0, memory=0.80, nvlink=0.75, network=0.80)
HOPPER = Reached(matmul=0.75, attention=0.40, edge=124.0, memory=0.80, nvlink=0.75, network=0.80)

_A100 = Gpu("a100", 312e12, 80e9, 2.039e12, 300e9, 25e9, AMPERE)  # A100 80GB SXM data sheet; DGX A100: 200 Gb/s a GPU
_H100 = Gpu("h100", 989.5e12, 80e9, 3.35e12, 450e9, 50e9, HOPPER)  # H100 SXM data sheet; DGX H100: 400 Gb/s a GPU

GPUS = {
    gpu.name: gpu
    for gpu in (
        _A100,
        replace(_A100, name="a800", nvlink=200e9),
        _H100,
        replace(_H100, name="h800", nvlink=200e9),
        replace(_H100, name="h200", memory=141e9, bandwidth=4.8e12),
        replace(_H100, name="h20", peak=148e12, memory=96e9, bandwidth=4.0e12),
    )
}


@dataclass(frozen=True)
class Software:
    """What of the work a training framework hides or saves. hidden: share of the tensor- and context-parallel
    communication that goes on beside computation; passes: how often what is between the products goes through memory,
    over what one fused kernel each would need."""

    name: str
    hidden: float
    passes: float


# Ours waits for NCCL between products (Megatron-Core's layers without TransformerEngine's user buffers) and runs one
# kernel an operation. `passes` is that of published stacks that do too, fitted: no GPU was at hand to measure ours.
MEGAPHONE = Software("megaphone", hidden=0.0, passes=1.77)


def gpu_kind(name: str) -> Gpu:
    """Raises BadInput for a kind that is not known."""
    kind = GPUS.get(name.lower())
    if kind is None:
        near = get_close_matches(name.lower(), GPUS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"--gpu {name}: not known{hint} There are {', '.join(GPUS)}")
    return kind

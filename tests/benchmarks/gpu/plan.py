"""What is measured, the most important first, and how long each may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from tests.benchmarks.gpu.libraries import TESTING

MARK = "\x1egpu-benchmark "  # begins a line of figures that a measurement prints; libraries print others
PACKAGE = "tests.benchmarks.gpu"
Parts = Iterator[tuple[str, dict[str, Any]]]  # a part's name and its figures, as they come


@dataclass(frozen=True)
class Measurement:
    """call: module and function, which takes a `shapes.Scale` and `given`. seconds: most that it may take on a GPU,
    from the moment that it has the device. needs: libraries beside torch. hidden: the GPU is hidden from it."""

    name: str
    call: str
    seconds: float
    given: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ("megatron-core", "omegaconf")
    hidden: bool = False

    def load(self) -> Callable[..., Parts]:
        module, function = self.call.split(":")
        return cast(Callable[..., Parts], getattr(importlib.import_module(f"{PACKAGE}.{module}"), function))


# Packs of a micro-batch (one row) and micro-batches of a step, by shape: a row is as long as keeps the device busy
# without recompute on 139 GiB; steps are of 32,768 to 65,536 tokens.
_SIZES = {"135m": (8, 1), "1b": (2, 2), "3b": (1, 4)}


def _ours(shape: str, positions: str, seconds: float) -> Measurement:
    packs, micro_batches = _SIZES[shape]
    given = {"shape": shape, "positions": positions, "packs": packs, "micro_batches": micro_batches}
    recompute = ("none", "full") if shape == "3b" else ("none",)
    return Measurement(f"{shape} {positions}: ours", "training:ours", seconds, {**given, "recompute": recompute})


def _in_fp8(shape: str, seconds: float) -> Measurement:
    """As `_ours` without recompute, with products in fp8; its MFU stays a share of the bf16 peak."""
    packs, micro_batches = _SIZES[shape]
    given = {"shape": shape, "positions": "rope", "packs": packs, "micro_batches": micro_batches, "fp8": True}
    needs = ("megatron-core", "omegaconf", "transformer-engine")
    return Measurement(f"{shape} rope: ours in fp8", "training:ours", seconds, given, needs)


def _peer(library: str, shape: str, seconds: float) -> Measurement:
    packs, micro_batches = _SIZES[shape]
    given = {"shape": shape, "packs": packs, "micro_batches": micro_batches}
    needs = ("megatron-core", "omegaconf", *dict.fromkeys(("transformers", library)))
    return Measurement(f"{shape} rope: {library}", f"peers:{library}", seconds, given, needs)


CHECK = Measurement("device", "device:look", 60, needs=())

MEASUREMENTS = (
    _ours("3b", "rope", 75),
    _ours("3b", "sqrt_alibi", 90),
    _peer("transformers", "3b", 80),
    _ours("135m", "rope", 50),
    _peer("transformers", "135m", 70),
    Measurement("reference on the CPU", "agreement:reference", 60, hidden=True),
    Measurement("against the CPU", "agreement:against_the_cpu", 60),
    _ours("1b", "rope", 50),
    _peer("transformers", "1b", 70),
    _in_fp8("3b", 60),
    Measurement("curve of 100 steps", "agreement:curve", 60),
    Measurement("attention", "parts:attention", 40),
    Measurement("loss over the vocabulary", "parts:loss", 40),
    Measurement("flow decoder", "parts:flow", 40),
    Measurement("Whisper's encoder", "parts:whisper", 40, needs=("megatron-core", "omegaconf", "transformers")),
    Measurement("kernels against float64", "agreement:kernels", 90, needs=("megatron-core", "omegaconf", *TESTING)),
    _peer("deepspeed", "1b", 70),
    _ours("135m", "sqrt_alibi", 50),
    _ours("1b", "sqrt_alibi", 50),
)


def by_name(name: str) -> Measurement:
    return next(one for one in (CHECK, *MEASUREMENTS) if one.name == name)

"""Whether the GPU computes what the CPU does in fp32: one batch of the same weights, a curve of 100 steps, kernels.

Weights are drawn by name (`train.models.initialise`), so every process has the same checkpoint without a file.

Tolerances. In fp32 the GPU's order of sums differs: 1e-3 of the logits' norm, 1e-4 of the loss, 1e-3 of the gradient's
norm. In bf16 a number has 8 bits: products of two roundings, 2^-9 each, through 30 layers whose errors add up like a
random walk, come to 2 % of the logits' norm; allowed are 5 %, 1 % of the loss, 5 % of the gradient's norm.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from configs.schema import Config, Precision
from data_pipeline.batch import collate
from runtime.exits import BadInput
from tests.benchmarks.gpu import older_torch, training
from tests.benchmarks.gpu.rows import packed_rows
from tests.benchmarks.gpu.shapes import Scale, backbone
from train.engines import process_groups

TOLERANCES = {
    "fp32": {"logits": 1e-3, "loss": 1e-4, "gradient_norm": 1e-3},
    "bf16": {"logits": 5e-2, "loss": 1e-2, "gradient_norm": 5e-2},
}
POSITIONS = ("rope", "sqrt_alibi")
_PLACES = 64  # whose logits are compared
_CURVE_END = 20  # steps whose mean loss is compared
_CURVE_TOLERANCE = 0.01


def scratch() -> Path:
    return Path(os.environ["MEGAPHONE_GPU_BENCH_SCRATCH"])


def _small(scale: Scale, positions: str, precision: Precision, length: int) -> Config:
    config = training.config_of(backbone("135m", positions, scale), scale, packs=1)
    config.train.precision = precision
    config.train.sequence_length = length
    return config


def _one_batch(scale: Scale, positions: str, precision: Precision) -> dict[str, Any]:
    """Loss and gradient norm of one step, and logits (float32, some places of the row) before it."""
    length = 128 if scale.tiny else 2048
    config = _small(scale, positions, precision, length)
    place = training.device()
    batch = collate(packed_rows(1, length, scale.ids, seed=2, words=scale.words))
    engine, objective = training.build(config, scale, place, by_name=True)
    logits = engine.logits(batch)
    assert logits is not None, "one process is the last pipeline stage"
    chosen = torch.linspace(0, length - 1, _PLACES).long()
    outcome = engine.train_step([batch], training.LEARNING_RATE, [], lambda _: True)
    return {
        "loss": objective.averages(outcome.sums, outcome.counts)["lm"],
        "gradient_norm": outcome.gradient_norm,
        "logits": logits[0].cpu()[chosen].clone(),
    }


def reference(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """On the CPU in fp32, for `against_the_cpu` to compare with. This process sees no GPU."""
    assert training.device().type == "cpu"
    process_groups.join(Config().parallel)
    for positions in POSITIONS:
        found = _one_batch(scale, positions, Precision.fp32)
        torch.save(found, scratch() / f"{positions}.pt")
        yield positions, {"loss": found["loss"], "gradient_norm": found["gradient_norm"]}


def against_the_cpu(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Relative differences from `reference`, in fp32 and in bf16."""
    mended = older_torch.mend()
    torch.backends.cuda.matmul.allow_tf32 = False
    process_groups.join(Config().parallel)
    for positions in POSITIONS:
        exact = torch.load(scratch() / f"{positions}.pt", weights_only=True)
        for precision in (Precision.fp32, Precision.bf16):
            found = _one_batch(scale, positions, precision)
            training.free()
            differences = {
                "logits": float((found["logits"] - exact["logits"]).norm() / exact["logits"].norm()),
                "loss": abs(found["loss"] / exact["loss"] - 1),
                "gradient_norm": abs(found["gradient_norm"] / exact["gradient_norm"] - 1),
            }
            allowed = TOLERANCES[precision.value]
            yield (
                f"{positions} {precision.value}",
                {
                    "differences": differences,
                    "allowed": allowed,
                    "holds": all(differences[name] <= allowed[name] for name in allowed),
                    "mended": mended,
                },
            )


def curve(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """100 steps in bf16 and in fp32 on the same data, both on the device; and with products in fp8, where
    TransformerEngine is there.

    Noise is what another order of the same data does to the fp32 curve's end; the others may differ by that or 1 %.
    """
    older_torch.mend()
    length, steps = (128, 6) if scale.tiny else (1024, 100)
    place = process_groups.join(Config().parallel)
    rows = packed_rows(steps, length, scale.ids, seed=3, words=scale.words)
    ends = {}
    curves = [
        ("fp32", Precision.fp32, rows),
        ("bf16", Precision.bf16, rows),
        ("fp32, reversed", Precision.fp32, rows[::-1]),
    ]
    if importlib.util.find_spec("transformer_engine") is not None:
        curves.append(("fp8", Precision.bf16, rows))
    for name, precision, order in curves:
        config = _small(scale, "rope", precision, length)
        try:
            if name == "fp8":
                config.train.fp8 = training.fp8_of(config, place)
        except BadInput as error:
            yield name, {"failed": str(error)}
            continue
        engine, objective = training.build(config, scale, place, by_name=True)
        losses = []
        for row in order:
            outcome = engine.train_step([collate([row])], training.LEARNING_RATE, [], lambda _: True)
            losses.append(objective.averages(outcome.sums, outcome.counts)["lm"])
        del engine
        training.free()
        ends[name] = sum(losses[-_CURVE_END:]) / len(losses[-_CURVE_END:])
        yield name, {"losses": losses, "end": ends[name]}
    noise = abs(ends["fp32, reversed"] / ends["fp32"] - 1)
    for name in [name for name in ("bf16", "fp8") if name in ends]:
        off = abs(ends[name] / ends["fp32"] - 1)
        holds = off <= max(noise, _CURVE_TOLERANCE)
        yield f"{name} beside fp32", {"differs": off, "noise": noise, "holds": holds}


def kernels(scale: Scale) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every kernel of the step against its formula in float64: the tests of them, on this device."""
    import subprocess
    import sys

    wanted = [f"tests/train/{file}" for file in ("test_fused.py", "test_attention.py")]
    some = "test_kernels_of_a_gpu and 1-64 or test_fused and not micro_batches"  # one size: compiling takes time
    chosen = ["-k", "turned_together" if scale.tiny else some]
    plugin = ["-p", "tests.benchmarks.gpu.older_torch_plugin"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, *wanted, *chosen],
        cwd=training.ROOT,
        capture_output=True,
        text=True,
    )
    last = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else ran.stderr.strip()[-300:]
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    yield "", {"holds": ran.returncode == 0, "said": last, "broken": failed[:20]}

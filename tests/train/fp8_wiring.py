"""`python -m tests.train.fp8_wiring FOLDER`, with the stand-in for TransformerEngine on the path: what our engine makes
of `train.fp8` around it. A process of its own: Megatron-Core looks for TransformerEngine as it is imported."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from train.engines import absent_names
from train.engines.cuda_on_cpu import emulate_cuda

emulate_cuda()
absent_names.fill_in()

from megatron.core import parallel_state  # noqa: E402
from transformer_engine.common.recipe import Float8CurrentScaling, Format  # noqa: E402
from transformer_engine.pytorch import rounded  # noqa: E402

from checkpoints import store  # noqa: E402
from checkpoints.manifest import read_manifest  # noqa: E402
from configs.schema import BackboneConfig, Config, Fp8Config, Precision  # noqa: E402
from data_pipeline.batch import Batch, collate  # noqa: E402
from tests.benchmarks.gpu import agreement, training  # noqa: E402
from tests.benchmarks.gpu.rows import SMALL, packed_rows  # noqa: E402
from tests.benchmarks.gpu.shapes import TINY  # noqa: E402
from train.engines import process_groups  # noqa: E402
from train.engines.megatron import MegatronEngine  # noqa: E402
from train.objectives.next_token import NextToken  # noqa: E402

STEPS, LENGTH = 4, 128
SHAPE = BackboneConfig(
    name="test", layers=4, hidden=64, ffn=128, heads=4, kv_heads=2, qkv_bias=True, tokenizer="none", init_std=0.1
)


def engine_of(fp8: Fp8Config | None) -> MegatronEngine:
    config = Config(backbone=SHAPE)
    config.train.precision, config.train.fp8, config.train.sequence_length = Precision.bf16, fp8, LENGTH
    objective = NextToken(("text", "linguistic", "semantic"), config.loss)
    return MegatronEngine(config, SMALL.rows, objective, torch.device("cpu"))


def losses(engine: Any, steps: list[list[Batch]]) -> list[float]:
    found = []
    for batches in steps:
        outcome = engine.train_step(batches, 3e-3, [], lambda _: True)
        found.append(engine.objective.averages(outcome.sums, outcome.counts)["lm"])
    return found


def linears(engine: Any) -> list[list[Any]]:
    """Of each layer its four."""
    return [
        [layer.self_attention.linear_qkv, layer.self_attention.linear_proj, layer.mlp.linear_fc1, layer.mlp.linear_fc2]
        for layer in engine.models[0].decoder.layers
    ]


def save(engine: Any, folder: Path) -> Path:
    state = engine.sharded_state(optimizer=True, loading=False)
    return store.save(folder, STEPS, state, state={}, topology={})


def load(engine: Any, checkpoint: Path) -> None:
    engine.load_state(
        store.load(checkpoint, engine.sharded_state(optimizer=True, loading=True)),
        optimizer=True,
    )


def main(folder: Path) -> None:
    process_groups.join(Config().parallel)
    packs = packed_rows(4 * STEPS, LENGTH, SMALL, seed=0, words=(4, 20))
    steps = [[collate([pack]) for pack in packs[start : start + 2]] for start in range(0, len(packs), 2)]
    now, later = steps[:STEPS], steps[STEPS:]

    plain, ours = engine_of(None), engine_of(Fp8Config())
    in_bf16, in_fp8 = losses(plain, now), losses(ours, now)
    assert in_fp8 != in_bf16
    assert all(abs(fp8 / bf16 - 1) < 0.03 for fp8, bf16 in zip(in_fp8, in_bf16, strict=True)), (in_fp8, in_bf16)
    assert in_fp8[-1] < in_fp8[0] - 0.1, in_fp8

    first, *middle, last = linears(ours)
    assert all(linear.recipe is None for layer in (first, last) for linear in layer)
    for linear in (linear for layer in middle for linear in layer):
        assert type(linear.recipe) is Float8CurrentScaling and linear.recipe.fp8_format is Format.HYBRID
        assert linear.fuse_wgrad_accumulation and not linear.is_first_microbatch
    ours.evaluate(later[0], [])  # weights of after the last step, not its first micro-batch's copies
    for linear in (linear for layer in middle for linear in layer):
        assert torch.equal(linear.cached, rounded(linear.weight.detach(), torch.float8_e4m3fn))

    saved, saved_plain = save(ours, folder / "fp8"), save(plain, folder / "bf16")
    shapes = [{name: one.shape for name, one in read_manifest(at).tensors.items()} for at in (saved, saved_plain)]
    assert shapes[0] == shapes[1] and not any("_extra_state" in name for name in shapes[0])
    assert not any(b"Float8CurrentScaling" in file.read_bytes() for file in saved.rglob("*") if file.is_file())

    going_on, again, in_other = engine_of(Fp8Config()), engine_of(Fp8Config(bf16_first=0, bf16_last=0)), engine_of(None)
    for engine in (going_on, again, in_other):
        load(engine, saved)
    expected = losses(ours, later)
    assert losses(going_on, later) == expected, "a run that goes on differs from one that was not stopped"
    for engine in (again, in_other):
        assert all(abs(one / other - 1) < 0.03 for one, other in zip(losses(engine, later), expected, strict=True))
    assert all(linear.recipe is not None for layer in linears(again) for linear in layer)
    load(ours, saved_plain)  # what ran in fp8 before takes weights of bf16, and its own state, back
    assert all(torch.isfinite(torch.tensor(losses(ours, later))))
    _benchmark()


def _benchmark() -> None:
    """What a GPU is measured with, on its way through toy sizes."""
    given = {"shape": "3b", "positions": "rope", "packs": 1, "micro_batches": 2, "fp8": True}
    parallel_state.destroy_model_parallel()  # each measurement joins by itself
    ((part, figures),) = training.ours(TINY, **given)
    assert part == "" and all(torch.isfinite(torch.tensor(figures["losses"])))
    parallel_state.destroy_model_parallel()
    parts = dict(agreement.curve(TINY))
    assert parts["fp8"]["losses"] != parts["bf16"]["losses"] and parts["fp8 beside fp32"]["differs"] < 0.01


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]))

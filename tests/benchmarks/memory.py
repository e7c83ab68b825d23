"""Memory by formula (launch/planner/memory.py) against a dry run's ledger of the same settings, at full size.

python -m tests.benchmarks.memory           # 7B to 9B models on small topologies, some four minutes of one core
python -m tests.benchmarks.memory 130b      # every stage of Step-Audio's 130B on 1,024 GPUs and two other cuts of it
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.checks.topology import model_parallel_size
from configs.compose import compose_stage
from launch.planner.memory import memory
from train.dryrun.process import dry_run, prepare

_DENSE = ("corpus.vocabulary_rows=157696", "train.precision=bf16", "train.sequence_length=4096", "parallel=single")
_SELECTIVE = "parallel.recompute=selective"
CASES: list[tuple[int, tuple[str, ...]]] = [
    (1, ("backbone=qwen2_5_7b",)),
    (1, ("backbone=llama3_1_8b", "train.micro_batch=2")),
    (1, ("backbone=qwen2_5_7b", "stage.lora.rank=16")),
    (1, ("backbone=qwen2_5_7b", "parallel.recompute=full")),
    (1, ("backbone=qwen2_5_7b", _SELECTIVE)),
    (1, ("backbone=qwen2_5_7b", _SELECTIVE, "parallel.recompute_modules=[mlp]")),
    (1, ("backbone=qwen2_5_7b", _SELECTIVE, "parallel.recompute_modules=[mlp,layernorm]")),
    (2, ("backbone=qwen2_5_7b", "parallel.tensor=2", "stage.frozen=[embedding.*,output_layer.*]")),
    (4, ("backbone=qwen2_5_7b", "parallel.tensor=4", "parallel.sequence=true")),
    (4, ("backbone=qwen3_8b", "parallel.tensor=2", "parallel.context=2", "parallel.sequence=true")),
    (4, ("backbone=glm4_9b_chat", "parallel.context=2", "parallel.distributed_optimizer=true")),
    (8, ("backbone=qwen2_5_7b", "parallel.pipeline=4", "parallel.distributed_optimizer=true", "train.global_batch=16")),
    (8, ("backbone=qwen3_8b", "parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.tensor=2")),
    (4, ("backbone=qwen2_5_7b", "parallel.pipeline=4", "parallel.recompute=full", "parallel.recompute_method=block")),
]
_PLAIN = ("parallel.virtual_pipeline=null", "parallel.pipeline_layout=auto")
CASES_130B: list[tuple[int, tuple[str, ...]]] = [
    (1024, ()),
    (1024, (*_PLAIN, "parallel.pipeline=16")),
    (1024, (*_PLAIN, "parallel.tensor=4", "parallel.recompute=full")),
]


def compare(gpus: int, recipe: tuple[str, str, str | None], settings: tuple[str, ...]) -> float:
    """Print a line a pipeline stage; returns the largest relative difference of totals."""
    config = compose_stage(*recipe, list(settings))
    found = dry_run(config, gpus)
    predicted = memory(config, found["vocabulary_rows"], gpus // model_parallel_size(config))
    worst = 0.0
    for rank in found["ranks"]:
        mine = predicted[rank["stage"]]
        step = mine.activations + mine.logits + mine.buffers
        allocated = sum(rank[part] for part in ("weights", "gradients", "optimizer", "other", "step"))
        off = mine.total / allocated - 1
        worst = max(worst, abs(off))
        print(
            f"  stage {rank['stage']:2}: {mine.total / 1e9:7.2f} GB predicted, {allocated / 1e9:7.2f} allocated, "
            f"{100 * off:+5.2f} %; of the step alone {step / 1e9:6.2f} and {rank['step'] / 1e9:6.2f}, "
            f"{100 * (step / rank['step'] - 1):+6.2f} %",
            flush=True,
        )
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--small", action="store_true")
    which.add_argument("--large", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    prepare()
    worst = 0.0
    for gpus, settings in () if options.large else CASES:
        print(f"{gpus} GPUs, {' '.join(settings)}", flush=True)
        given = {word.partition("=")[0] for word in settings}
        common = tuple(word for word in _DENSE if word.partition("=")[0] not in given)
        worst = max(worst, compare(gpus, ("quickstart", "tiny", None), (*common, *settings)))
    for gpus, settings in () if options.small else CASES_130B:
        print(f"{gpus} GPUs, Step-Audio 130B {' '.join(settings)}", flush=True)
        worst = max(worst, compare(gpus, ("step_audio", "paper", "cooldown"), settings))
    print(f"largest difference of a total: {100 * worst:.2f} %")


if __name__ == "__main__":
    main()

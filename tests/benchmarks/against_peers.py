"""Tokens a second and peak memory of our Megatron engine at TP=1 beside DeepSpeed ZeRO-1 and DDP around transformers.

The same Llama shape (hidden 512, 8 layers, 8 heads of which 4 for keys and values, ffn 1408, tied), random weights, the
same packs of samples of 32 to 300 tokens, fp32, one rank and one thread, clipping at 1. Each as its documentation
advises for packed rows: transformers gets the rows with `position_ids` that begin again at each sample, from which it
makes its block-diagonal mask (flash attention, which needs none, is not there on a CPU), and labels of -100 where
samples meet; DDP keeps its gradients in its buckets, skips reducing before the last micro-batch, and steps with torch's
fused AdamW; DeepSpeed is given the same AdamW. Every run is a process of its own, and they take turns; a figure is the
median of the runs' median steps, and in brackets the lowest and highest; CPU seconds say the same where other work runs
beside. Memory is the process's high-water mark. That all compute the same is held by
`tests/train/test_against_transformers.py`; here random weights differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from data_pipeline.batch import Pack

PEERS = ("ours", "ddp", "deepspeed")
SHAPE: dict[str, Any] = {"hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1408}
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MICRO_BATCHES = 2  # a step
Step = Callable[[list[Pack]], float]  # returns the loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["32000,512", "32000,2048", "74752,512", "74752,2048"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        peer, shape = options.one
        print(json.dumps(measure(peer, *map(int, shape.split(",")), options.steps)))
        return
    print("| vocabulary | tokens a row | | tokens/s | ours over it | CPU s a step | ours over it | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in options.shapes:
        found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for _ in range(options.runs):
            for peer in PEERS:
                found[peer].append(_process(peer, shape, options.steps))
        spent = {peer: median(run["cpu_seconds"] for run in runs) for peer, runs in found.items()}
        rates = {peer: sorted(run["tokens_a_second"] for run in runs) for peer, runs in found.items()}
        for peer in PEERS:
            rows, tokens = shape.split(",")
            print(
                f"| {int(rows):,} | {tokens} | {peer} | {median(rates[peer]):,.0f} ({rates[peer][0]:,.0f}-"
                f"{rates[peer][-1]:,.0f}) | {median(rates['ours']) / median(rates[peer]):.2f} | "
                f"{spent[peer]:.2f} | {spent[peer] / spent['ours']:.2f} | "
                f"{median(run['peak_megabytes'] for run in found[peer]):,.0f} |",
                flush=True,
            )


def _process(peer: str, shape: str, steps: int) -> dict[str, float]:
    environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--steps", str(steps), "--one", peer, shape],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"{peer}: {ran.stderr[-2000:]}")
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def measure(peer: str, rows: int, tokens: int, steps: int) -> dict[str, float]:
    import resource

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    step = {"ours": _ours, "ddp": _ddp, "deepspeed": _deepspeed}[peer](rows, tokens)
    packs = make_packs(rows, tokens)
    seconds, spent = [], []
    for _ in range(1 + steps):
        here = [next(packs) for _ in range(MICRO_BATCHES)]
        started, at = time.perf_counter(), time.process_time()
        step(here)
        seconds.append(time.perf_counter() - started)
        spent.append(time.process_time() - at)
    return {
        "tokens_a_second": MICRO_BATCHES * tokens / median(seconds[1:]),
        "cpu_seconds": median(spent[1:]),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def make_packs(rows: int, tokens: int) -> Iterator[Pack]:
    """Packs without padding, of samples of 32 to 300 tokens (the last is cut); tokens far from evenly drawn."""
    rng = np.random.default_rng(0)
    while True:
        lengths: list[int] = []
        while sum(lengths) < tokens:
            lengths.append(min(int(rng.integers(32, 301)), tokens - sum(lengths)))
        ids = np.minimum(rng.pareto(1.0, tokens) * 10, rows - 1).astype(np.int64)
        positions = np.concatenate([np.arange(length) for length in lengths])
        last = np.append(positions[1:] == 0, True)
        yield Pack(
            tokens=ids,
            labels=np.append(ids[1:], 0),
            loss_weight=(~last).astype(np.float32),
            label_modality=np.zeros(tokens, np.uint8),
            positions=positions,
            lengths=tuple(lengths),
            keys=("",) * len(lengths),
            padding=0,
            audio_seconds=0.0,
        )


# --- the three --------------------------------------------------------------------------------------------------


def _ours(rows: int, tokens: int) -> Step:
    from train.engines.cuda_on_cpu import emulate_cuda

    emulate_cuda()
    from configs.schema import BackboneConfig, Config
    from data_pipeline.batch import collate
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.pretrain import NextToken

    config = Config(backbone=BackboneConfig(name="peer", tokenizer="none", **SHAPE))
    config.train.sequence_length = tokens
    objective = NextToken(("text",), config.loss)
    engine = MegatronEngine(config, rows, objective, process_groups.join(config.parallel))

    def step(packs: list[Pack]) -> float:
        outcome = engine.train_step([collate([pack]) for pack in packs], ADAM["lr"], [], lambda _: True)
        return objective.averages(outcome.sums, outcome.counts)["lm"]

    return step


def _llama(rows: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=SHAPE["hidden"],
            intermediate_size=SHAPE["ffn"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            num_key_value_heads=SHAPE["kv_heads"],
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
            use_cache=False,
        )
    )
    with torch.no_grad():  # residual outputs start as small as ours
        for layer in model.model.layers:
            for matrix in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                matrix.div_((2 * SHAPE["layers"]) ** 0.5)
    return model


def _adam(model: Any) -> Any:
    import torch

    return torch.optim.AdamW(model.parameters(), fused=True, **ADAM)


def _inputs(pack: Pack) -> dict[str, Any]:
    """transformers shifts labels itself, so a sample's first is what its neighbour must not predict."""
    import torch

    ids, positions = torch.from_numpy(pack.tokens)[None], torch.from_numpy(pack.positions)[None]
    return {"input_ids": ids, "position_ids": positions, "labels": torch.where(positions == 0, -100, ids)}


def _ddp(rows: int, tokens: int) -> Step:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(_llama(rows), gradient_as_bucket_view=True)
    adam = _adam(model)

    def step(packs: list[Pack]) -> float:
        count = int(sum(pack.loss_weight.sum() for pack in packs))
        total = 0.0
        for turn, pack in enumerate(packs):
            with nullcontext() if turn == len(packs) - 1 else model.no_sync():
                loss = model(**_inputs(pack), num_items_in_batch=count).loss
                loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=False)  # they are views into the buckets
        return total

    return step


def _deepspeed(rows: int, tokens: int) -> Step:
    import deepspeed

    deepspeed.init_distributed("gloo")
    model = _llama(rows)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=_adam(model), config=settings)

    def step(packs: list[Pack]) -> float:
        count = int(sum(pack.loss_weight.sum() for pack in packs))
        total = 0.0
        for pack in packs:
            # The engine divides by the number of micro-batches, transformers by the count of all of them.
            loss = engine(**_inputs(pack), num_items_in_batch=count).loss * MICRO_BATCHES
            engine.backward(loss)
            engine.step()
            total += loss.item() / MICRO_BATCHES
        return total

    return step


if __name__ == "__main__":
    main()

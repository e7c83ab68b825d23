"""Tokens a second and peak memory of our Megatron engine at TP=1 beside DeepSpeed ZeRO-1 and DDP around transformers.

The same Llama shape (hidden 512, 8 layers, 8 heads of which 4 for keys and values, ffn 1408, tied), random weights, the
same packs of samples of 32 to 300 tokens, fp32, one rank and one thread, clipping at 1. Each as its documentation
advises for packed rows: transformers gets the rows with `position_ids` that begin again at each sample, from which it
makes its block-diagonal mask (flash attention, which needs none, is not there on a CPU), and labels of -100 where
samples meet; DDP keeps its gradients in its buckets, skips reducing before the last micro-batch, and steps with torch's
fused AdamW; DeepSpeed is given the same AdamW. Each has a process of its own, and they take turns step by step on the
same packs, so that other work beside strikes all alike: how much slower a peer is, is the median over rounds of its
step over ours in the same round, with quartiles in brackets. CPU seconds depend less on what runs beside than seconds
do. Memory is a process's high-water mark. That all compute the same is held by
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
from statistics import median, quantiles
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
    parser.add_argument("--steps", type=int, default=9, help="timed, after one that is not")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        peer, shape = options.one
        step_when_told(peer, *map(int, shape.split(",")))
        return
    print("| vocabulary | tokens a row | | tokens/s | seconds over ours | CPU s a step | over ours | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in options.shapes:
        rows, tokens = map(int, shape.split(","))
        runs = {peer: _started(peer, shape) for peer in PEERS}
        found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
        for turn in range(1 + options.steps):
            for peer, run in runs.items():
                measured = _told(run)
                if turn:
                    found[peer].append(measured)
        for run in runs.values():
            run.communicate()
        for peer, steps in found.items():
            rates = sorted(MICRO_BATCHES * tokens / step["seconds"] for step in steps)
            print(
                f"| {rows:,} | {tokens} | {peer} | {median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f}) "
                f"| {_over(found, peer, 'seconds')} | {median(step['cpu'] for step in steps):.2f} "
                f"| {_over(found, peer, 'cpu')} | {steps[-1]['peak_megabytes']:,.0f} |",
                flush=True,
            )


def _over(found: dict[str, list[dict[str, float]]], peer: str, what: str) -> str:
    """How much a peer's step takes of ours in the same round: the middle one of all rounds, and the quartiles."""
    ratios = [theirs[what] / ours[what] for theirs, ours in zip(found[peer], found["ours"], strict=True)]
    if peer == "ours":
        return "1"
    lower, middle, upper = quantiles(ratios, n=4)
    return f"{middle:.2f} ({lower:.2f}-{upper:.2f})"


def _started(peer: str, shape: str) -> subprocess.Popen[str]:
    environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--one", peer, shape],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _told(run: subprocess.Popen[str]) -> dict[str, float]:
    """Have a peer make a step while the others wait."""
    assert run.stdin is not None and run.stdout is not None
    run.stdin.write("step\n")
    run.stdin.flush()
    for line in run.stdout:
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError(f"{run.args}: ended")


def step_when_told(peer: str, rows: int, tokens: int) -> None:
    """A step for every line of input, and a line of figures about it."""
    import resource

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    step = {"ours": _ours, "ddp": _ddp, "deepspeed": _deepspeed}[peer](rows, tokens)
    packs = make_packs(rows, tokens)
    for _ in sys.stdin:
        here = [next(packs) for _ in range(MICRO_BATCHES)]
        started, at = time.perf_counter(), time.process_time()
        step(here)
        measured = {
            "seconds": time.perf_counter() - started,
            "cpu": time.process_time() - at,
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(measured), flush=True)


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
    from train.objectives.next_token import NextToken

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

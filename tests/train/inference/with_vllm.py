"""What test_vllm runs where vLLM can be imported: `python with_vllm.py EXPORT OTHER`. Two engines are given the same
prompts as transformers; then this process kills itself, as a rank may be killed.

Prints one line of JSON: of every call what each engine said, and the process ids of vLLM's processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import torch.distributed as dist

from configs.schema import InferenceConfig, InferenceKind
from data_pipeline.continuing import Opening
from data_pipeline.drawing import Sampling, grammar_of_codes, grammar_of_text
from tests.data_pipeline.test_text_to_code import END, VOCABULARY
from train.inference.engine import open_engine

# More than an engine has at once; the long one is read in parts beside others that speak already.
OPENINGS = [Opening([5 + i] * (3 + i), 9 + i, i) for i in range(6)] + [Opening(list(range(90)), 5, 6)]
STEP_AUDIO = Sampling(0.7, window=10, share=0.1)


def main(export: Path, other: Path) -> None:
    # As beside training: a process group that vLLM must not take for its own.
    dist.init_process_group("gloo", init_method=f"file://{export.parent}/group", rank=0, world_size=1)
    engines = {
        kind: open_engine(
            InferenceConfig(engine=kind, tensor_parallel=2 if kind is InferenceKind.vllm else 1),
            rows=VOCABULARY.size,
            device="cpu",
            bf16=False,
            longest=160,
            batch=4,
        )
        for kind in InferenceKind
    }
    codes, text = grammar_of_codes(VOCABULARY, END), grammar_of_text(VOCABULARY, END)
    calls = {
        "codes": (export, codes, STEP_AUDIO),
        "text": (export, text, Sampling()),
        "other": (other, text, Sampling()),
    }
    told: dict[str, dict[str, list[tuple[list[int], list[float]]]]] = {}
    held = None
    for name, (weights, grammar, sampling) in calls.items():
        told[name] = {}
        for kind, engine in engines.items():
            if weights != held:
                engine.take(weights)
            said = engine.continued(OPENINGS, grammar, sampling, tell=True)
            told[name][kind.value] = [(list(one.ids), list(one.log_probs)) for one in said]
        held = weights
    children = [child.pid for child in psutil.Process().children(recursive=True)]
    print(json.dumps({"said": told, "children": children}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

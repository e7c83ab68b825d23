"""Whether a converted checkpoint computes what its other form does: native logits beside those of transformers.

`python -m train.conversion_check <native checkpoint> <Hugging Face folder>` prints the agreement as JSON, as its last
line. One process holds both models, in fp32.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from checkpoints import store
from checkpoints.card import LogitsAgreement
from checkpoints.formats.native import NativeReader
from checkpoints.layout import TENSORS
from checkpoints.manifest import MODEL_PREFIX, read_manifest
from checkpoints.maps import described
from configs.schema import BackboneConfig, Config, ParallelConfig, Precision, TrainConfig
from data_pipeline.batch import Pack, collate
from runtime.exits import DONE, BadInput, leave

TOLERANCE = 1e-4  # of logits, absolute, in fp32
LENGTHS = (17, 46, 64)  # of the samples of one pack: attention must not cross them
_EMBEDDING = MODEL_PREFIX + "embedding.word_embeddings.weight"


def agreement(native: Path, huggingface: Path) -> LogitsAgreement:
    """Compare the logits of fixed random ids. Raises BadInput where transformers cannot load the folder."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    plain = read_manifest(native).backbone
    if plain is None:
        raise BadInput(f"{native} does not say its backbone, so its logits cannot be computed")
    logging.disable_progress_bar()
    try:
        theirs_of = AutoModelForCausalLM.from_pretrained(huggingface, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{huggingface}: transformers cannot load it, so logits are not compared ({reason})") from error
    ids = [sample % theirs_of.config.vocab_size for sample in _ids()]
    ours = _native_logits(native, described(plain), ids)
    differences, cosines, same = [], [], 0
    for sample, mine in zip(ids, ours, strict=True):
        with torch.no_grad():
            theirs = theirs_of(input_ids=sample[None]).logits[0].float()
        mine = mine[:, : theirs.shape[1]]
        differences.append((mine - theirs).abs().max().item())
        cosines.append(F.cosine_similarity(mine, theirs, dim=1).min().item())
        same += int((mine.argmax(1) == theirs.argmax(1)).sum())
    return LogitsAgreement(
        reference=f"transformers' {type(theirs_of).__name__}, fp32",
        inputs=f"{len(LENGTHS)} packed samples of random ids",
        tokens=sum(LENGTHS),
        max_abs=max(differences),
        cosine=min(cosines),
        same_argmax=same / sum(LENGTHS),
        tolerance=TOLERANCE,
    )


def _ids() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(1 << 30, (length,), generator=generator) for length in LENGTHS]


def _native_logits(native: Path, backbone: BackboneConfig, ids: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits [length, rows] of each sample, all of them computed in one pack."""
    from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

    from train.engines import absent_names, optional_kernels, process_groups
    from train.engines.cuda_on_cpu import emulate_cuda

    optional_kernels.hush_megatron()
    emulate_cuda()
    absent_names.fill_in()
    from train.engines.megatron import MegatronEngine
    from train.objectives.pretrain import NextToken

    rows = NativeReader(native / TENSORS).tensors[_EMBEDDING].shape[0]
    config = Config(backbone=backbone, parallel=ParallelConfig(), train=TrainConfig(precision=Precision.fp32))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    device = process_groups.join(config.parallel)
    try:
        engine = MegatronEngine(config, rows, NextToken(("text",)), device)
        state = engine.models[0].sharded_state_dict()
        add_prefix_for_sharding(state, MODEL_PREFIX)
        engine.models[0].load_state_dict(store.load(native, state))
        logits = engine.logits(collate([_pack(ids)]))
    finally:
        process_groups.leave()
    assert logits is not None, "one process is the last pipeline stage"
    return list(logits[0].cpu().split(LENGTHS))


def _pack(ids: list[torch.Tensor]) -> Pack:
    flat = torch.cat(ids).numpy()
    positions = np.concatenate([np.arange(length) for length in LENGTHS])
    weight, modality = np.ones(len(flat), np.float32), np.zeros(len(flat), np.uint8)
    return Pack(flat, flat, weight, modality, positions, LENGTHS, ("",) * len(LENGTHS), 0, 0.0)


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    try:
        found = agreement(*map(Path, arguments))
    except BadInput as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(asdict(found)))
    return DONE


if __name__ == "__main__":
    leave(main(sys.argv[1:]))

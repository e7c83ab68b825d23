"""Whether a native checkpoint computes what its published form does: `python -m train.logits_check NATIVE FOLDER`.

Logits of a fixed packed row against those that transformers, which shares no line with the model here, computes of a
Hugging Face folder. One process, in fp32; the two models are in memory one after the other. The last line printed is
a `checkpoints.card.LogitsAgreement` as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from checkpoints.card import LogitsAgreement
from checkpoints.maps import described
from configs.schema import BackboneConfig, ParallelConfig, Precision
from data_pipeline.batch import Pack, collate
from runtime.exits import BAD_INPUT, DONE, BadInput, leave
from runtime.threads import settle_vector_math

TOLERANCE = 1e-4  # of logits, absolute
LENGTHS = (19, 45)  # tokens of the samples that are drawn
SEED = 11
_EMBEDDING = "embedding.word_embeddings.weight"


class Comparison:
    """Two sets of logits compared, sample by sample."""

    def __init__(self) -> None:
        self.tokens = 0
        self.samples = 0
        self.max_abs = 0.0
        self.worst = "none"  # where that is: an error in one place and one everywhere have other causes
        self.cosine = 1.0
        self._same = 0

    @property
    def same_argmax(self) -> float:
        """Share of tokens after which both find the same one most likely."""
        return self._same / max(self.tokens, 1)

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        """One sample's logits, [tokens, vocabulary]; where one has more rows of padding, those are left out. NaN in
        either counts as an infinite difference."""
        rows = min(ours.shape[-1], theirs.shape[-1])
        ours, theirs = ours[:, :rows].float().cpu(), theirs[:, :rows].float().cpu()
        differences = (ours - theirs).abs().nan_to_num(nan=float("inf")).amax(-1)
        place = int(differences.argmax())
        if differences[place] > self.max_abs:
            self.max_abs = differences[place].item()
            median = differences.median().item()
            self.worst = f"token {place} of {len(ours)} in sample {self.samples}, their median is {median:.1e}"
        cosine = torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1).min().item()
        self.cosine = min(self.cosine, cosine if cosine == cosine else -1.0)
        self._same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.tokens += len(ours)
        self.samples += 1


def compare(native: Path, published: Path) -> LogitsAgreement:
    """Compute both and compare them. Joins a process group of one, and leaves it.

    Raises BadInput where the checkpoint does not say its backbone, or transformers cannot load the folder without
    running code of its own.
    """
    from transformers import AutoModelForCausalLM
    from transformers import __version__ as version
    from transformers.utils import logging

    from data_pipeline.step1_model import register

    backbone, rows, kept = _model_of(native)
    samples = draw(min(kept, _rows_of(published, rows)), backbone)
    ours = native_logits(native, backbone, rows, samples)
    logging.disable_progress_bar()
    register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            published, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        ).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{published}: transformers does not load it, so that logits are not compared: {reason}"
        ) from error
    comparison = Comparison()
    for sample, mine in zip(samples, ours, strict=True):
        with torch.no_grad():
            comparison.add(mine[:, :kept], model(input_ids=sample[None]).logits[0])
    return LogitsAgreement(
        reference=f"{type(model).__name__} of transformers {version}, fp32",
        inputs=f"{len(samples)} samples of {' and '.join(str(len(sample)) for sample in samples)} tokens, seed {SEED}",
        tokens=comparison.tokens,
        max_abs=comparison.max_abs,
        cosine=comparison.cosine,
        same_argmax=comparison.same_argmax,
        tolerance=TOLERANCE,
    )


def draw(rows: int, backbone: BackboneConfig) -> list[torch.Tensor]:
    """Samples of ids below `rows`, int64, always the same ones."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = [min(length, backbone.max_positions) for length in LENGTHS]
    return [torch.randint(rows, (length,), generator=generator) for length in lengths]


def native_logits(
    native: Path, backbone: BackboneConfig, rows: int, samples: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Logits of each sample, fp32 [tokens, rows], of a native checkpoint: samples are packed into one row, as in
    training."""
    from train.engines import absent_names, optional_kernels
    from train.engines.cuda_on_cpu import emulate_cuda

    optional_kernels.hush_megatron()
    emulate_cuda()
    absent_names.fill_in()
    from megatron.core import tensor_parallel
    from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

    from checkpoints import store
    from checkpoints.manifest import MODEL_PREFIX
    from train.engines import process_groups
    from train.models.speech_lm import SpeechLM, run
    from train.models.trunk import transformer_config

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    device = process_groups.join(ParallelConfig())
    try:
        tensor_parallel.model_parallel_cuda_manual_seed(SEED)
        model = SpeechLM(backbone, transformer_config(backbone, ParallelConfig(), Precision.fp32), rows).eval()
        state = {"0": model.sharded_state_dict()}
        add_prefix_for_sharding(state, MODEL_PREFIX)
        model.load_state_dict(store.load(native, state)["0"])
        with torch.no_grad():
            logits = run(model.to(device), collate([_pack(samples)]).to(device))[0].float().cpu()
    finally:
        process_groups.leave()
    return list(logits.split([len(sample) for sample in samples]))


def _pack(samples: Sequence[torch.Tensor]) -> Pack:
    tokens = torch.cat(list(samples)).numpy()
    lengths = tuple(len(sample) for sample in samples)
    none, text = np.zeros(len(tokens), np.float32), np.zeros(len(tokens), np.uint8)
    return Pack(tokens, tokens, none, text, lengths, ("",) * len(lengths), 0, 0.0)


def _model_of(native: Path) -> tuple[BackboneConfig, int, int]:
    """A checkpoint's backbone, the rows of its vocabulary, and how many of them are the published model's."""
    from checkpoints.manifest import MODEL_PREFIX, read_manifest

    manifest = read_manifest(native)
    embedding = manifest.tensors.get(MODEL_PREFIX + _EMBEDDING)
    if manifest.backbone is None or embedding is None:
        raise BadInput(f"{native}: its manifest says no backbone with an embedding, so that logits are not computed")
    rows = embedding.shape[0]
    kept = manifest.origin.get("kept_rows")
    kept = kept if isinstance(kept, int) and 0 < kept < rows else rows
    return replace(described(manifest.backbone), weights=None), rows, kept


def _rows_of(published: Path, default: int) -> int:
    """Ids that a folder's own embedding has rows for."""
    from checkpoints.formats.huggingface import CONFIG_FILE
    from checkpoints.formats.huggingface_config import read_config

    config = read_config(published / CONFIG_FILE)
    return int(config.get("vocab_size") or config.get("padded_vocab_size") or default)


def main(arguments: list[str]) -> int:
    """See above. Returns the exit code; of numbers that disagree too it is 0, they are for the caller to judge."""
    settle_vector_math()
    try:
        agreement = compare(*map(Path, arguments))
    except BadInput as error:
        print(error, file=sys.stderr, flush=True)
        return BAD_INPUT
    print(json.dumps(asdict(agreement)))
    return DONE


if __name__ == "__main__":
    leave(main(sys.argv[1:]))

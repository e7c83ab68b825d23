"""Whether an export computes what the checkpoint does: `python -m train.export_check <run folder>`.

Native logits of a packed validation batch against those that transformers computes from the exported folder, sample
by sample. One process holds both models, in fp32.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from configs.audio_input import audio_input_of
from configs.checks.ppo import PPO
from configs.schema import AttentionKernel, Config, EngineConfig, ParallelConfig, Precision
from data_pipeline.batch import Pack
from data_pipeline.packing import slots_between
from runtime.exits import BadInput, leave
from runtime.log_lines import stamp_output
from runtime.run_files import AUDIO_EXPORT, EXPORT, EXPORT_CHECK
from runtime.signals import StopFlag
from train.logits_check import TOLERANCE, Comparison
from train.stage import run_rank

if TYPE_CHECKING:
    from train.exported_audio import ExportedAudioInput

PACKS = 4


@dataclass(frozen=True)
class Agreement:
    """How two sets of logits compare: the largest difference, where that is, and the share of tokens with one best."""

    tokens: int
    samples: int
    max_difference: float
    worst: str
    same_argmax: float


def compare(
    native: torch.Tensor, packs: list[Pack], exported: Any, audio: ExportedAudioInput | None = None
) -> Agreement:
    """native: logits [1, N, V] of `packs` laid end to end; audio: what places that are heard go through. Padding is
    left out."""
    start, comparison = 0, Comparison()
    for pack in packs:
        place = start
        for length in pack.read:
            ids = torch.from_numpy(pack.tokens[place - start : place - start + length])
            with torch.no_grad():
                if audio is None:
                    logits = exported(input_ids=ids[None]).logits[0]
                else:
                    slots = slots_between(pack.slots, place - start, place - start + length)
                    read = audio.embeddings(ids, slots, exported.get_input_embeddings())
                    logits = exported(inputs_embeds=read).logits[0]
                comparison.add(native[0, place : place + length], logits)
            place += length
        start += len(pack.tokens)
    found = comparison
    return Agreement(found.tokens, found.samples, found.max_abs, found.worst, found.same_argmax)


def check_export(config: Config, stop: StopFlag) -> None:
    """Compare, print one line, write check.json. Raises BadInput where a fp32 export is off by more than TOLERANCE."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from data_pipeline.step1_model import register
    from train.loop import newest_logits

    folder = Path(config.run.folder)
    if not (folder / EXPORT / "config.json").is_file():
        raise BadInput(f"{folder / EXPORT} holds no export; make it with: megaphone checkpoint export {folder}")
    comparing = config.stage.objective == PPO  # of its models this is the policy, over whole pairs
    alone = replace(
        config,
        stage=replace(config.stage, objective="dpo") if comparing else config.stage,
        parallel=ParallelConfig(),
        engine=EngineConfig(),
        train=replace(
            config.train,
            precision=Precision.fp32,
            fp8=None,
            attention=AttentionKernel.auto,
            validate_every=1,
            validation_packs=PACKS,
        ),
    )
    logging.disable_progress_bar()
    register()
    with stop.at_once("the same command checks the export again"):
        packs, native = newest_logits(alone, stop)
        exported = AutoModelForCausalLM.from_pretrained(folder / EXPORT, dtype=torch.float32).eval()
        agreement = compare(native, packs, exported, _audio_input(alone, folder / AUDIO_EXPORT))
    (folder / EXPORT_CHECK).write_text(json.dumps(asdict(agreement), indent=2) + "\n", encoding="utf-8")
    line = (
        f"export checked on {agreement.tokens} tokens in {agreement.samples} packed samples: largest logit difference "
        f"{agreement.max_difference:.1e}, same best token {100 * agreement.same_argmax:.2f} %"
    )
    if config.export.dtype is Precision.fp32 and agreement.max_difference > TOLERANCE:
        raise BadInput(f"{line}; more than {TOLERANCE:.0e} is not the same model: {agreement.worst}")
    print(f"megaphone: {line}", flush=True)


def _audio_input(config: Config, folder: Path) -> ExportedAudioInput | None:
    audio = audio_input_of(config)
    if audio is None:
        return None
    from train.exported_audio import ExportedAudioInput

    return ExportedAudioInput(folder, audio, config.backbone.hidden, config.backbone.embedding_multiplier)


def main(arguments: list[str]) -> int:
    """Check the export of the run folder in `arguments`. Returns the exit code."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    return run_rank([str(Path(folder) / "config.yaml") for folder in arguments], check_export)


if __name__ == "__main__":
    stamp_output()
    leave(main(sys.argv[1:]))

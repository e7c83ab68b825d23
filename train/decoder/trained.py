"""A trained part of the decoder, read from its run or checkpoint without process groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from checkpoints.formats.native import NativeReader
from checkpoints.layout import TENSORS, complete_checkpoints
from checkpoints.manifest import MANIFEST_FILE, MODEL_PREFIX, read_manifest
from checkpoints.readers import reading
from configs.compose import load_config
from configs.schema import DecoderConfig, StageKind
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from runtime.run_files import CONFIG_FILE
from runtime.threads import settle_vector_math

M = TypeVar("M", bound=torch.nn.Module)


@dataclass(frozen=True)
class Part:
    """A checkpoint of a stage of kind decoder."""

    checkpoint: Path
    config: DecoderConfig
    vocabulary: Vocabulary

    def fill(self, module: M, prefix: str) -> M:
        """`module` with the checkpoint's tensors under `prefix`. Raises BadInput where one is missing or has another
        shape."""
        settle_vector_math()
        with reading(self.checkpoint), torch.no_grad():
            tensors = NativeReader(self.checkpoint / TENSORS)
            for name, parameter in module.named_parameters():
                stored = tensors.read(f"{MODEL_PREFIX}{prefix}{name}")
                if stored.shape != parameter.shape:
                    raise BadInput(
                        f"{self.checkpoint}: {prefix}{name} has shape {list(stored.shape)}, not {list(parameter.shape)}"
                    )
                parameter.copy_(stored)
            tensors.release()
        return module


def read_part(folder: Path, objective: str) -> Part:
    """The newest checkpoint of a run folder, or the checkpoint that `folder` is, of a stage that trained `objective`.
    Raises BadInput where it is neither, or of another stage."""
    checkpoints = complete_checkpoints(folder / "checkpoints")
    checkpoint = checkpoints[-1] if checkpoints else folder
    if not (checkpoint / MANIFEST_FILE).is_file():
        raise BadInput(f"{folder} holds no checkpoint of a decoder's {objective}")
    read_manifest(checkpoint)
    config = load_config(checkpoint / CONFIG_FILE)
    if config.stage.kind is not StageKind.decoder or config.stage.objective != objective:
        raise BadInput(
            f"{checkpoint} is of a stage of kind {config.stage.kind.value} and objective {config.stage.objective}, not "
            f"of a decoder's {objective}"
        )
    return Part(checkpoint, config.decoder, Vocabulary.load(checkpoint))

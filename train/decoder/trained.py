"""Trained parts of the decoder, found in their runs or checkpoints without process groups. Torch is imported when
tensors are read, so that what is no decoder is told before any process starts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import xxhash

from checkpoints.layout import TENSORS, complete_checkpoints
from checkpoints.manifest import MANIFEST_FILE, MODEL_PREFIX, read_manifest
from configs.compose import load_config
from configs.schema import DecoderConfig, StageKind
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput
from runtime.run_files import CONFIG_FILE
from runtime.threads import settle_vector_math

if TYPE_CHECKING:
    import torch

PIECES = ".distcp"  # how names of the files end that hold tensors
M = TypeVar("M", bound="torch.nn.Module")


@dataclass(frozen=True)
class Part:
    """A checkpoint of a stage of kind decoder."""

    checkpoint: Path
    config: DecoderConfig
    vocabulary: Vocabulary

    def fill(self, module: M, prefix: str) -> M:
        """`module` with the checkpoint's tensors under `prefix`. Raises BadInput where one is missing or has another
        shape."""
        import torch

        from checkpoints.formats.native import NativeReader
        from checkpoints.readers import reading

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

    def identity(self) -> str:
        """What it makes of its input, for content hashes: its settings, and the files of its tensors as the manifest
        has them. Where the run lies, and when it was written, is none of it."""
        files = read_manifest(self.checkpoint).files
        tensors = {name: record.xxh3 for name, record in files.items() if name.endswith(PIECES)}
        return xxhash.xxh3_128_hexdigest(json.dumps([asdict(self.config), tensors], sort_keys=True).encode())


@dataclass(frozen=True)
class Trained:
    """A flow, and the vocoder that goes with it; None: Griffin-Lim serves."""

    flow: Part
    vocoder: Part | None

    @classmethod
    def read(cls, flow: Path, vocoder: Path | None) -> Trained:
        """From run folders (their newest checkpoints) or checkpoints. Raises BadInput for folders that hold no such
        part, and parts that do not go together."""
        parts = cls(read_part(flow, "flow"), None if vocoder is None else read_part(vocoder, "vocoder"))
        if parts.vocoder is not None and parts.vocoder.config.mel != parts.flow.config.mel:
            raise BadInput(f"{vocoder} was trained on other mels than {flow}: their decoder.mel differ")
        return parts

    def identity(self) -> dict[str, str]:
        """Of both parts, by name."""
        vocoder = "griffin-lim" if self.vocoder is None else self.vocoder.identity()
        return {"flow": self.flow.identity(), "vocoder": vocoder}


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

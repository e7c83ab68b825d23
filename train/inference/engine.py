"""What continues prompts with an exported model, and which ranks have one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from configs.schema import InferenceConfig, InferenceKind
from data_pipeline.continuing import Opening, Said
from data_pipeline.drawing import Grammar, Sampling


class InferenceEngine(Protocol):
    def take(self, export: Path) -> None:
        """Continue with the weights of this export from now on. Raises BadInput where it is none."""

    def continued(
        self, openings: Sequence[Opening], grammar: Grammar, sampling: Sampling, *, tell: bool = False
    ) -> list[Said]:
        """What the model says to each, the same for the same prompt, seed and weights but where a draw falls between
        two tokens to the last bits of their chances. tell: with log-probabilities."""


def open_engine(
    config: InferenceConfig, *, rows: int, device: str | None, bf16: bool, longest: int, batch: int
) -> InferenceEngine:
    """An engine without weights yet. rows: of its vocabulary at least. device: cpu, cuda or cuda:<n>; None: cuda if
    there. longest: tokens of a prompt and what it is continued with; batch: prompts at once at most."""
    if config.engine is InferenceKind.vllm:
        from train.inference.vllm import VllmEngine

        return VllmEngine(config, device=device, bf16=bf16, longest=longest, batch=batch)
    from train.inference.transformers import TransformersEngine

    return TransformersEngine(rows, device=device, bf16=bf16)


def has_engine(config: InferenceConfig, rank: int) -> bool:
    """Whether this rank has one: of `tensor_parallel` neighbours the first, which takes the GPUs of them all."""
    return rank % config.tensor_parallel == 0

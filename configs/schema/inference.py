"""What runs an exported model: where prompts are continued (stages of kind generate that make speech, and objective
ppo), and where a teacher is asked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class InferenceKind(Enum):
    transformers = "transformers"  # in the rank's own process, on one device
    vllm = "vllm"  # in processes beside it; found at run time, if there; not for a teacher
    # On the stage's own ranks, shared by parallel.tensor, sequence, pipeline and virtual_pipeline as in training. For a
    # teacher alone. Data-parallel copies share out the work; generation.batch samples are laid into rows of
    # train.sequence_length tokens, which go through the pipeline one behind the other. Logits of loss.chunk places
    # exist at a time.
    megatron = "megatron"


@dataclass
class InferenceConfig:
    engine: InferenceKind = InferenceKind.transformers
    # GPUs of a node that one vLLM shares: of so many neighbouring ranks the first has it, the others wait.
    tensor_parallel: int = 1
    # Of a GPU's memory, what one vLLM may fill. Beside training (ppo) it is what that leaves.
    memory_share: float = 0.9

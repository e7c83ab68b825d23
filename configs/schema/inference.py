"""What runs an exported model where prompts are continued: stages of kind generate that make speech, and objective
ppo."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class InferenceKind(Enum):
    transformers = "transformers"  # in the rank's own process, on one device
    vllm = "vllm"  # in processes beside it; found at run time, if there


@dataclass
class InferenceConfig:
    engine: InferenceKind = InferenceKind.transformers
    # GPUs of a node that one vLLM shares: of so many neighbouring ranks the first has it, the others wait.
    tensor_parallel: int = 1
    # Of a GPU's memory, what one vLLM may fill. Beside training (ppo) it is what that leaves.
    memory_share: float = 0.9

"""What continues prompts: values that cannot work, refused in one line."""

from __future__ import annotations

from configs.schema import Config, InferenceKind, Made, StageKind
from runtime.exits import BadInput


def check_inference(config: Config) -> None:
    inference = config.inference
    if not 0 < inference.memory_share <= 1:
        raise BadInput(f"inference.memory_share={inference.memory_share}: has to be above 0 and at most 1")
    if inference.tensor_parallel < 1:
        raise BadInput(f"inference.tensor_parallel={inference.tensor_parallel}: has to be at least 1")
    if inference.engine is not InferenceKind.vllm:
        if inference.tensor_parallel > 1:
            raise BadInput(
                f"inference.tensor_parallel={inference.tensor_parallel}: inference.engine={inference.engine.value} has "
                "its model on one device; give inference.engine=vllm"
            )
        return
    if config.stage.kind is StageKind.generate and config.generation.makes is Made.teacher:
        raise BadInput(
            "inference.engine=vllm: generation.makes=teacher asks for the likeliest tokens of each table, which it "
            "does not tell; give inference.engine=transformers"
        )

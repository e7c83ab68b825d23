"""Products of the trunk's linear layers in fp8, by TransformerEngine through Megatron-Core's wrappers of it.

Megatron-Core's block enters TransformerEngine's autocast around each layer (0.16.1, `TransformerBlock.forward`), or not
around those that stay in bf16; what changes here is which classes the four linear layers are of. They have the names
and the shapes that the others have, so a checkpoint is the same with fp8 and without. Parameters are bf16, with fp32
main ones in the optimiser; their fp8 copies are made anew in the first micro-batch of every step.

What TransformerEngine would keep in a checkpoint, `_extra_state`, is left out of ours (`checkpoints.sharded`). Of the
recipes here that loses nothing: they keep no history, and TransformerEngine 2.6 pickles no more than the recipe's name
and options.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.utils import get_te_version

from configs.schema import Config, Fp8Config, Fp8Recipe
from runtime.exits import BadInput

# Megatron-Core 0.16.1 asks of recomputed norms under fp8 for this version; all three recipes are in it.
_LEAST_VERSION = (2, 6)
# Least compute capability, and what it is of; mxfp8 has an end too (TransformerEngine's `check_mxfp8_support`).
_CAPABILITY = {
    Fp8Recipe.tensorwise: ((8, 9), "Ada"),
    Fp8Recipe.blockwise: ((9, 0), "Hopper"),
    Fp8Recipe.mxfp8: ((10, 0), "Blackwell"),
}
_NO_MXFP8_FROM = (12, 0)
_BLOCKWISE_CUDA = (12, 9)
_FORMATS = {Fp8Recipe.tensorwise: "hybrid", Fp8Recipe.blockwise: "e4m3", Fp8Recipe.mxfp8: "e4m3"}


def fp8_settings(fp8: Fp8Config | None) -> dict[str, Any]:
    """Megatron-Core's settings for it; none for None."""
    if fp8 is None:
        return {}
    return {
        "fp8": _FORMATS[fp8.recipe],
        "fp8_recipe": fp8.recipe.value,
        "first_last_layers_bf16": bool(fp8.bf16_first or fp8.bf16_last),
        "num_layers_at_start_in_bf16": fp8.bf16_first,
        "num_layers_at_end_in_bf16": fp8.bf16_last,
    }


def with_fp8_products(parts: TransformerLayerSubmodules) -> None:
    """Have a layer's linear layers be TransformerEngine's. Its norms stay ours, in modules of their own."""
    from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

    attention, mlp = parts.self_attention.submodules, parts.mlp.submodules
    attention.linear_qkv = mlp.linear_fc1 = TEColumnParallelLinear
    attention.linear_proj = mlp.linear_fc2 = TERowParallelLinear


def check_fp8_here(config: Config) -> None:
    """Raises BadInput where this machine cannot do what `train.fp8` asks for; `configs.checks` has refused what no
    machine can."""
    if config.train.fp8 is None:
        return
    if not torch.cuda.is_available():
        raise BadInput("train.fp8 needs a GPU, and there is none; train.fp8=null trains in bf16")
    version = get_te_version()
    if version is None:
        raise BadInput("train.fp8 needs TransformerEngine, which is not installed; train.fp8=null trains in bf16")
    cuda = torch.version.cuda or "0.0"
    check_device(config.train.fp8.recipe, torch.cuda.get_device_capability(), cuda, str(version))


def check_device(recipe: Fp8Recipe, capability: tuple[int, int], cuda: str, transformer_engine: str) -> None:
    """Raises BadInput where a GPU of this compute capability, or these versions, do not have the recipe."""
    name = f"train.fp8.recipe={recipe.value}"
    least, generation = _CAPABILITY[recipe]
    had = ".".join(map(str, capability))
    if capability < least:
        raise BadInput(f"{name} needs a GPU of the {generation} generation or later; this one's capability is {had}")
    if recipe is Fp8Recipe.mxfp8 and capability >= _NO_MXFP8_FROM:
        raise BadInput(f"{name}: TransformerEngine has it for capability 10.x; this GPU's is {had}")
    if recipe is Fp8Recipe.blockwise and _numbers(cuda) < _BLOCKWISE_CUDA:
        raise BadInput(f"{name} needs CUDA 12.9 or later; torch is built for {cuda}")
    if _numbers(transformer_engine) < _LEAST_VERSION:
        wanted = ".".join(map(str, _LEAST_VERSION))
        raise BadInput(f"train.fp8 needs TransformerEngine {wanted} or later; {transformer_engine} is installed")


def _numbers(version: str) -> tuple[int, int]:
    """Of `12.9` or `2.6.0.dev0`."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)

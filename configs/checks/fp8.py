"""Products in fp8: what cannot be, refused in one line."""

from __future__ import annotations

from configs.checks.ppo import PPO
from configs.schema import Config, Fp8Recipe, Precision
from runtime.exits import BadInput

# Every side of a product has to be a multiple of this, forward and backward: Megatron-Core's `get_fp8_align_size`.
SIDES = {Fp8Recipe.tensorwise: 16, Fp8Recipe.blockwise: 16, Fp8Recipe.mxfp8: 32}


def check_fp8(config: Config) -> None:
    fp8, backbone, parallel = config.train.fp8, config.backbone, config.parallel
    if fp8 is None:
        return
    if config.train.precision is not Precision.bf16:
        raise BadInput("train.fp8 needs train.precision=bf16: what is not a product in fp8 is computed in it")
    if config.engine.name != "megatron":
        raise BadInput(f"train.fp8: engine.name={config.engine.name} cannot; engine.name=megatron can")
    if backbone.experts is not None:
        raise BadInput("train.fp8: not built for backbone.experts; leave it out")
    if config.stage.lora is not None:
        raise BadInput("train.fp8: not built for stage.lora; leave it out")
    if config.stage.objective == PPO:
        raise BadInput("train.fp8: not built for stage.objective=ppo, whose answers come in bf16; leave it out")
    _check_layers(config)
    head, tensor = backbone.head_dim or backbone.hidden // backbone.heads, parallel.tensor
    sharing = parallel.context * (tensor if parallel.sequence else 1)
    sides = {
        "backbone.hidden": backbone.hidden,
        "backbone.ffn / parallel.tensor": backbone.ffn // tensor,
        "the width of all queries / parallel.tensor": backbone.heads * head // tensor,
        "the width of all queries, keys and values / parallel.tensor": (
            (backbone.heads + 2 * backbone.kv_heads) * head // tensor
        ),
        "train.sequence_length over the ranks that share a pack": config.train.sequence_length // sharing,
    }
    multiple = SIDES[fp8.recipe]
    for name, size in sides.items():
        if size % multiple:
            raise BadInput(f"train.fp8.recipe={fp8.recipe.value}: {name} is {size}, no multiple of {multiple}")


def _check_layers(config: Config) -> None:
    fp8, layers = config.train.fp8, config.backbone.layers
    assert fp8 is not None
    most = layers // config.parallel.pipeline  # Megatron-Core's own limit
    for key in ("bf16_first", "bf16_last"):
        value = getattr(fp8, key)
        if value < 0:
            raise BadInput(f"train.fp8.{key}={value}: has to be 0 or above")
        if value > most:
            raise BadInput(f"train.fp8.{key}={value} is above backbone.layers / parallel.pipeline = {most}")
    if fp8.bf16_first + fp8.bf16_last >= layers:
        raise BadInput(
            f"train.fp8: bf16_first={fp8.bf16_first} and bf16_last={fp8.bf16_last} leave no layer of "
            f"backbone.layers={layers}"
        )

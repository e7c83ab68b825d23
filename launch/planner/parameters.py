"""Parameters of a model by name, and how many elements of each a rank holds; from the config alone."""

from __future__ import annotations

from configs.parameter_names import matching
from configs.pipeline import PipelineStage
from configs.schema import Config
from train.audio_input import of_audio_input
from train.trainable import trained_names

EXPERTS = ".mlp.experts."


def of_stage(config: Config, stage: PipelineStage, first: int, vocabulary_rows: int) -> dict[str, int]:
    """Elements that a rank of `stage`, whose first layer is number `first`, holds of each parameter it has.

    Of experts, which are dealt out over ranks, it is the first rank's.
    """
    backbone, tensor = config.backbone, config.parallel.tensor
    rows = vocabulary_rows // tensor * backbone.hidden
    held = {"embedding.word_embeddings.weight": rows} if stage.embedding else {}
    for number in range(first, first + stage.layers):
        held |= {f"decoder.layers.{number}.{name}": size for name, size in _layer(config, number).items()}
    if stage.head:
        held["decoder.final_layernorm.weight"] = backbone.hidden
        if not backbone.tied_embeddings:
            held["output_layer.weight"] = rows
        elif not stage.embedding:  # a copy, kept equal
            held["embedding.word_embeddings.weight"] = rows
    return held


def trained(config: Config, stages: list[dict[str, int]]) -> set[str]:
    """Names of what the stage of training learns, of the parameters of all pipeline stages and of what hears."""
    return trained_names(config.stage, [*(name for held in stages for name in held), *of_audio_input(config)])


def _layer(config: Config, number: int) -> dict[str, int]:
    backbone, tensor, hidden = config.backbone, config.parallel.tensor, config.backbone.hidden
    size = backbone.head_dim or hidden // backbone.heads
    attended, both = backbone.heads * size // tensor, (backbone.heads + 2 * backbone.kv_heads) * size // tensor
    linear = {"self_attention.linear_qkv": (hidden, both, 1), "self_attention.linear_proj": (attended, hidden, 0)}
    held = {"self_attention.linear_qkv.layer_norm_weight": hidden}
    if backbone.qkv_bias:
        held["self_attention.linear_qkv.bias"] = both
    if backbone.qk_norm:
        held |= {"self_attention.q_layernorm.weight": size, "self_attention.k_layernorm.weight": size}
    experts = backbone.experts
    if experts is not None and number >= experts.dense_first:
        held |= {"pre_mlp_layernorm.weight": hidden, "mlp.router.weight": experts.count * hidden}
        for expert in range(experts.count // config.parallel.expert):
            held[f"mlp.experts.experts.{expert}.linear_fc1.weight"] = 2 * experts.ffn * hidden
            held[f"mlp.experts.experts.{expert}.linear_fc2.weight"] = experts.ffn * hidden
    else:
        held["mlp.linear_fc1.layer_norm_weight"] = hidden
        linear |= {"mlp.linear_fc1": (hidden, 2 * backbone.ffn // tensor, 1)}
        linear |= {"mlp.linear_fc2": (backbone.ffn // tensor, hidden, 0)}
    held |= {f"{name}.weight": inner * outer for name, (inner, outer, _) in linear.items()}
    return held | _factors(config, linear)


def _factors(config: Config, linear: dict[str, tuple[int, int, int]]) -> dict[str, int]:
    """LoRA's two of every linear layer that a target matches, of a rank's own width of the layer."""
    lora = config.stage.lora
    if lora is None:
        return {}
    wanted = matching(lora.targets, [f"decoder.layers.{name}" for name in linear])
    held: dict[str, int] = {}
    for name, (inner, outer, _) in linear.items():
        if f"decoder.layers.{name}" in wanted:
            held |= {f"{name}.lora_a": lora.rank * inner, f"{name}.lora_b": lora.rank * outer}
    return held

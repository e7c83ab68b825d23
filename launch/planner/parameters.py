"""The parameters of a model by name and size, from its numbers alone: no tensor is made and no file read.

Names are those of `configs.parameter_names`; a test holds them against the model itself.
"""

from __future__ import annotations

from configs.parameter_names import LORA_A, LORA_B, matching
from configs.schema import BackboneConfig, Config
from train.flops import Learning
from train.trainable import Trained, plan, without_layer


def elements(config: Config, vocabulary_rows: int) -> dict[str, int]:
    """Elements of every parameter of the whole model, low-rank factors included, by name; a tied head once.

    vocabulary_rows: of the embedding and the head, padding included.
    """
    backbone = config.backbone
    sizes = {"embedding.word_embeddings.weight": vocabulary_rows * backbone.hidden}
    for layer in range(backbone.layers):
        of_layer = _layer(backbone, layer)
        sizes |= {f"decoder.layers.{layer}.{name}": rows * columns for name, (rows, columns) in of_layer.items()}
        if config.stage.lora is not None:
            rank = config.stage.lora.rank
            matrices = {
                name.removesuffix(".weight"): shape
                for name, shape in of_layer.items()
                if name.endswith(".weight") and ".experts." not in name and ".linear_" in f".{name}" and shape[1] > 1
            }
            targets = config.stage.lora.targets
            for name, (rows, columns) in matrices.items():
                if matching(targets, [f"decoder.layers.{name}"]):
                    sizes[f"decoder.layers.{layer}.{name}.{LORA_A}"] = rank * columns
                    sizes[f"decoder.layers.{layer}.{name}.{LORA_B}"] = rank * rows
    sizes["decoder.final_layernorm.weight"] = backbone.hidden
    if not backbone.tied_embeddings:
        sizes["output_layer.weight"] = vocabulary_rows * backbone.hidden
    return sizes


def _layer(backbone: BackboneConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Rows and columns of what layer `layer` holds; a vector is one column."""
    head_dim = backbone.head_dim or backbone.hidden // backbone.heads
    hidden, inner = backbone.hidden, backbone.heads * head_dim
    fused = inner + 2 * backbone.kv_heads * head_dim
    held = {
        "self_attention.linear_proj.weight": (hidden, inner),
        "self_attention.linear_qkv.layer_norm_weight": (hidden, 1),
        "self_attention.linear_qkv.weight": (fused, hidden),
    }
    if backbone.qkv_bias:
        held["self_attention.linear_qkv.bias"] = (fused, 1)
    if backbone.qk_norm:
        held |= {f"self_attention.{which}_layernorm.weight": (head_dim, 1) for which in "qk"}
    experts = backbone.experts
    if experts is None or layer < experts.dense_first:
        return held | {
            "mlp.linear_fc1.layer_norm_weight": (hidden, 1),
            "mlp.linear_fc1.weight": (2 * backbone.ffn, hidden),
            "mlp.linear_fc2.weight": (hidden, backbone.ffn),
        }
    held |= {"pre_mlp_layernorm.weight": (hidden, 1), "mlp.router.weight": (experts.count, hidden)}
    for expert in range(experts.count):
        held[f"mlp.experts.experts.{expert}.linear_fc1.weight"] = (2 * experts.ffn, hidden)
        held[f"mlp.experts.experts.{expert}.linear_fc2.weight"] = (hidden, experts.ffn)
    return held


def trained(config: Config, vocabulary_rows: int) -> Trained:
    """The plan of the stage. Raises BadInput for what `train.trainable.plan` refuses."""
    return plan(config, elements(config, vocabulary_rows))


def learning(config: Config, vocabulary_rows: int) -> Learning:
    return Learning.of(config.stage, trained(config, vocabulary_rows))


def layer_of(name: str) -> int | None:
    """The layer that a parameter is of; None for embedding, last norm and head."""
    return int(name.split(".")[2]) if name.startswith("decoder.layers.") else None


def is_expert(name: str) -> bool:
    """Whether it is one of an expert's own, which expert parallelism deals out."""
    return ".experts.experts." in without_layer(name)

"""Shapes of native tensors, from the backbone alone."""

from __future__ import annotations

from checkpoints.rules import Rule, head_dim
from configs.schema import BackboneConfig
from runtime.exits import BadInput


def shape_of(rule: Rule, backbone: BackboneConfig, rows: int) -> tuple[int, ...]:
    """Shape of a rule's native tensor, of one layer's where there are layers; `rows` are the vocabulary's, padding
    included. Raises BadInput for a tensor whose shape is not known here."""
    hidden, head = backbone.hidden, head_dim(backbone)
    heads = (backbone.heads + 2 * backbone.kv_heads) * head
    if rule.vocabulary:
        return (rows, hidden)
    known: dict[str, tuple[int, ...]] = {
        "self_attention.linear_qkv.weight": (heads, hidden),
        "self_attention.linear_qkv.bias": (heads,),
        "self_attention.linear_proj.weight": (hidden, backbone.heads * head),
        "mlp.linear_fc1.weight": (2 * backbone.ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, backbone.ffn),
        "self_attention.q_layernorm.weight": (head,),
        "self_attention.k_layernorm.weight": (head,),
        "final_layernorm.weight": (hidden,),
    }
    for ending, shape in known.items():
        if rule.native.endswith(ending):
            return shape
    if rule.native.endswith(("layer_norm_weight", "layernorm.weight")):
        return (hidden,)
    raise BadInput(f"no plan for {rule.native}: its shape does not follow from the backbone")

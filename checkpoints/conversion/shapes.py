"""Shapes of native tensors, from the backbone alone, and whether those that are found are these."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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


def check_native_shape(rule: Rule, found: Sequence[int], backbone: BackboneConfig, where: object) -> None:
    """Raise BadInput, beginning with `where`, where a rule's native tensor, or one layer of it, has not the backbone's
    shape; a vocabulary's rows are free."""
    wanted = shape_of(rule, backbone, found[0] if found else 0)
    if tuple(found) != wanted:
        raise BadInput(f"{where}: {rule.native} has shape {list(found)}, backbone {backbone.name} has {list(wanted)}")


def check_foreign_shapes(
    rule: Rule, found: Sequence[tuple[str, Sequence[int]]], backbone: BackboneConfig, where: object
) -> None:
    """Raise BadInput, beginning with `where`, where a foreign tensor is not what the rule takes a native one of this
    backbone apart into. found: names and shapes, in the rule's order; a vocabulary's rows are free."""
    shape = shape_of(rule, backbone, found[0][1][0] if found[0][1] else 0)
    for (name, there), part in zip(found, rule.layout.split(torch.empty(shape, device="meta"), backbone), strict=True):
        if tuple(there) != tuple(part.shape):
            raise BadInput(f"{where}: {name} has shape {list(there)}, backbone {backbone.name} has {list(part.shape)}")

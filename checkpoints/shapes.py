"""Shapes of native tensors as a backbone has them, from its numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from checkpoints.rules import Rule, head_dim
from configs.schema import BackboneConfig, ExpertsConfig
from runtime.exits import BadInput

MATRICES = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Native parameters with a row for every id; the second only where the head is not tied to the embedding."""


def native_shape(native: str, backbone: BackboneConfig, rows: int) -> tuple[int, ...] | None:
    """Shape of a tensor, of one layer where layers are stacked; `rows` are the vocabulary's, padding included. None for
    a name that says nothing here."""
    hidden, head = backbone.hidden, head_dim(backbone)
    fused = (backbone.heads + 2 * backbone.kv_heads) * head
    if native in MATRICES:
        return rows, hidden
    return {
        "final_layernorm.weight": (hidden,),
        "linear_qkv.layer_norm_weight": (hidden,),
        "linear_qkv.weight": (fused, hidden),
        "linear_qkv.bias": (fused,),
        "q_layernorm.weight": (head,),
        "k_layernorm.weight": (head,),
        "linear_proj.weight": (hidden, backbone.heads * head),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        "mlp.linear_fc1.weight": (2 * backbone.ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, backbone.ffn),
        "pre_mlp_layernorm.weight": (hidden,),
        **(_of_experts(backbone.experts, hidden) if backbone.experts else {}),
    }.get(_tail(native))


def _of_experts(experts: ExpertsConfig, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        "mlp.router.weight": (experts.count, hidden),
        "experts.linear_fc1.weight": (experts.count, 2 * experts.ffn, hidden),
        "experts.linear_fc2.weight": (experts.count, hidden, experts.ffn),
    }


def check_native_shape(native: str, found: Sequence[int], backbone: BackboneConfig, where: object) -> None:
    """Raise BadInput, beginning with `where`, where a native tensor, or one layer of it, is not of this backbone's
    shape; a vocabulary's rows are free."""
    wanted = native_shape(native, backbone, found[0] if found else 0)
    if wanted is not None and tuple(found) != wanted:
        raise BadInput(f"{where}: {native} has shape {list(found)}, {_said(backbone)} has {list(wanted)}")


def check_foreign_shapes(
    rule: Rule, found: Sequence[tuple[str, Sequence[int]]], backbone: BackboneConfig, where: object
) -> None:
    """Raise BadInput, beginning with `where`, where a foreign tensor is not what the rule takes a native one of this
    backbone apart into. found: names and shapes, in the rule's order; a vocabulary's rows are free."""
    shape = native_shape(rule.native, backbone, found[0][1][0] if found[0][1] else 0)
    if shape is None:
        return
    wanted = rule.layout.split(torch.empty(shape, device="meta"), backbone)
    for (name, there), part in zip(found, wanted, strict=True):
        if tuple(there) != tuple(part.shape):
            raise BadInput(f"{where}: {name} has shape {list(there)}, {_said(backbone)} has {list(part.shape)}")


def _said(backbone: BackboneConfig) -> str:
    return f"backbone {backbone.name}"


def _tail(native: str) -> str:
    """The end of a name that says which tensor of a layer it is."""
    parts = native.split(".")
    return ".".join(parts[-3:] if parts[-3:-2] in (["mlp"], ["experts"]) else parts[-2:])

"""What architectures with experts have in common: names of their tensors, and which of them a config.json says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from checkpoints.maps import llama
from checkpoints.maps.config_form import number
from checkpoints.rules import COPY, Layout, Rule, joined
from configs.schema import BackboneConfig, ExpertsConfig
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(parts))


STACK = Layout(fuse=lambda parts, _: _stacked(parts), split=lambda whole, _: whole.unbind())
"""One tensor an expert, along a new first axis."""

STACKED_HALVES = Layout(
    fuse=lambda parts, _: _stacked([joined(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]),
    split=lambda whole, _: [half for expert in whole for half in expert.chunk(2)],
)
"""Two of equal size an expert, gate, then up, along a new first axis."""


def rules(backbone: BackboneConfig, router: str, gate: str, up: str, down: str) -> list[Rule]:
    """Llama's tensors with experts in place of its MLP, under these names behind that of the layer; `{expert}` is an
    expert's number. All experts of a layer are one native tensor: every tensor-parallel rank has them in whole."""
    experts = backbone.experts
    assert experts is not None, "maps.of_backbone: this architecture always has experts"

    def each(*names: str) -> tuple[str, ...]:
        numbered = range(experts.count)
        return tuple(llama.LAYER + name.replace("{expert}", str(number)) for number in numbered for name in names)

    return [
        *(rule for rule in llama.rules(backbone) if ".mlp." not in rule.native),
        Rule("decoder.layers.pre_mlp_layernorm.weight", (llama.LAYER + "post_attention_layernorm.weight",), COPY),
        Rule("decoder.layers.mlp.router.weight", (llama.LAYER + router,), COPY),
        Rule("decoder.layers.mlp.experts.experts.linear_fc1.weight", each(gate, up), STACKED_HALVES),
        Rule("decoder.layers.mlp.experts.experts.linear_fc2.weight", each(down), STACK),
    ]


def read(written: Mapping[str, Any], *, count: tuple[str, ...], ffn: str, normalised: bool) -> dict[str, Any]:
    """The field `experts` of a config.json; count: keys that may say how many, the first there counts. What is trained
    beside the loss is the run's own."""
    key = next((key for key in count if key in written), count[0])
    sizes = {
        "count": number(written, key),
        "ffn": number(written, ffn),
        "top_k": number(written, "num_experts_per_tok"),
    }
    for name, value in sizes.items():
        if value != int(value):
            raise BadInput(f"config.json: experts' {name}={value} is no whole number")
    return {"experts": ExpertsConfig(**{name: int(v) for name, v in sizes.items()}, normalise_top_k=normalised)}


def of(backbone: BackboneConfig) -> ExpertsConfig:
    """The experts of a backbone that is to be written down. Raises BadInput where it has none."""
    if backbone.experts is None:
        raise BadInput(f"backbone.{backbone.name} has no experts; architecture {backbone.architecture} always has")
    return backbone.experts

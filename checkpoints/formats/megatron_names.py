"""Megatron's names of parameters, old and new, as native checkpoints spell them.

A native name stacks layers (`decoder.layers.mlp.linear_fc1.weight`); here each layer still has its number. Names of
anything else, such as Hugging Face's, pass unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from checkpoints.formats.tensor_parallel import Cut

_WRAPPERS = re.compile(r"\A(?:(?:module|model|language_model)\.)+")
_LAYER = re.compile(r"(?:encoder|transformer|decoder)\.layers\.(\d+)\.(.+)")
_PARTS = (  # of a layer: what it is called, what native checkpoints call it
    (re.compile(r"input_(?:layer)?norm\.(weight|bias)"), r"self_attention.linear_qkv.layer_norm_\1"),
    (re.compile(r"(?:post_attention|pre_mlp)_(?:layer)?norm\.(weight|bias)"), r"mlp.linear_fc1.layer_norm_\1"),
    (re.compile(r"(?:self_)?attention\.query_key_value\.(.+)"), r"self_attention.linear_qkv.\1"),
    (re.compile(r"(?:self_)?attention\.dense\.(.+)"), r"self_attention.linear_proj.\1"),
    (re.compile(r"mlp\.dense_h_to_4h\.(.+)"), r"mlp.linear_fc1.\1"),
    (re.compile(r"mlp\.dense_4h_to_h\.(.+)"), r"mlp.linear_fc2.\1"),
    (re.compile(r"(self_attention\.(?:linear_|[qk]_layernorm).*|mlp\.linear_.*)"), r"\1"),
)
_ENDS = (  # of a model
    (re.compile(r"(?:embedding\.)?(word_embeddings|position_embeddings)\.weight"), r"embedding.\1.weight"),
    (
        re.compile(r"(?:(?:encoder|transformer|decoder)\.)?final_(?:layer)?norm\.(weight|bias)"),
        r"decoder.final_layernorm.\1",
    ),
    (re.compile(r"output_layer\.(weight|bias)"), r"output_layer.\1"),
)
_LOCAL = (
    (".self_attention.linear_qkv.layer_norm_", ".input_layernorm."),
    (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm."),
)
_NOT_PARAMETERS = ("_extra_state", "inv_freq")
_STAGED = re.compile(r"(\d+)\.(.+)")  # DeepSpeed's pipeline: number of the layer in the list of layers


def is_parameter(name: str) -> bool:
    """Whether a name in a state dict is one of a parameter, by its end."""
    return not name.endswith(_NOT_PARAMETERS)


def native_names(names: Iterable[str], layers_before: int = 0) -> dict[str, str]:
    """Each name as native checkpoints spell it but for stacking, layers numbered through.

    `layers_before`: layers of earlier pipeline stages. Where names begin with DeepSpeed's number of a pipeline layer,
    layers are numbered through all of those.
    """
    names = list(names)
    if names and all(_STAGED.fullmatch(name) or name.startswith("tied_modules.") for name in names):
        return _through_pipeline(names)
    return {name: _native(name, layers_before) for name in names}


def local_name(native: str) -> str:
    """A native name (layers apart) as a model of Megatron-Core's own layers has it, where norms stand by themselves."""
    for ours, local in _LOCAL:
        native = native.replace(ours, local)
    return native


def layers_in(names: Iterable[str]) -> int:
    """How many layers a stage's names are of."""
    found = [match[1] for name in names if (match := _LAYER.fullmatch(_WRAPPERS.sub("", name)))]
    return len(set(found))


def cut_of(native: str, shapes: Mapping[str, tuple[int, ...]]) -> Cut | None:
    """How Megatron's ranks share a parameter; None for a name that is not Megatron's.

    `shapes`: of all parameters of one rank by native name: the rows of linear_fc1 tell whether it is gated.
    """
    leaf = native.rsplit(".", 1)[-1]
    if native.endswith(("norm.weight", "norm.bias")) or leaf.startswith("layer_norm_"):
        return Cut.whole
    if leaf == "lora_a":  # of layers that are cut by columns it is too, of the others whole
        return Cut.columns if ".linear_proj." in native or ".linear_fc2." in native else Cut.whole
    if native.startswith(("embedding.word_embeddings.", "output_layer.")) or ".linear_qkv." in native:
        return Cut.rows
    if native == "embedding.position_embeddings.weight":
        return Cut.whole
    if ".linear_proj." in native or ".linear_fc2." in native:
        return Cut.columns if leaf == "weight" else Cut.whole
    if ".linear_fc1." in native:
        before = native.rpartition("linear_fc1.")[0]
        up, down = shapes.get(f"{before}linear_fc1.weight"), shapes.get(f"{before}linear_fc2.weight")
        return Cut.halves if up and down and up[0] == 2 * down[1] else Cut.rows
    return None


def _native(name: str, layers_before: int) -> str:
    bare = _WRAPPERS.sub("", name)
    if match := _LAYER.fullmatch(bare):
        part = _renamed(match[2], _PARTS)
        return name if part is None else f"decoder.layers.{int(match[1]) + layers_before}.{part}"
    return _renamed(bare, _ENDS) or name


def _renamed(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, native in table:
        if match := pattern.fullmatch(name):
            return match.expand(native)
    return None


def _through_pipeline(names: list[str]) -> dict[str, str]:
    """Names of DeepSpeed's pipeline: a stage of ours, with layers numbered from 0 in each, or one layer a number."""
    by_stage: dict[int, list[tuple[str, str]]] = {}
    renamed: dict[str, str] = {}
    for name in names:
        if match := _STAGED.fullmatch(name):
            by_stage.setdefault(int(match[1]), []).append((name, match[2]))
        else:
            renamed[name] = _native(name.split(".", 2)[2], 0)  # tied_modules.<key>.<name>
    layers = 0
    for _, held in sorted(by_stage.items()):
        inside = layers_in(rest for _, rest in held)
        alone = [_renamed(rest, _PARTS) for _, rest in held]
        for (name, rest), part in zip(held, alone, strict=True):
            if part is not None:
                renamed[name] = f"decoder.layers.{layers}.{part}"
            elif rest in ("weight", "bias") and layers:
                renamed[name] = f"decoder.final_layernorm.{rest}"
            elif rest == "lm_head.weight":
                renamed[name] = "output_layer.weight"
            else:
                renamed[name] = _native(rest, layers)
        layers += inside or any(part is not None for part in alone)
    return renamed

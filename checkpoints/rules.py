"""How tensors of another format are laid together into native ones, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from configs.schema import BackboneConfig

if TYPE_CHECKING:  # who only looks at names and shapes, as a check before the start does, waits for no torch
    import torch

LAYER = "{layer}"


@dataclass(frozen=True)
class Layout:
    """`fuse` makes the native tensor of the foreign ones, in order; `split` is its exact inverse."""

    fuse: Callable[[Sequence[torch.Tensor], BackboneConfig], torch.Tensor]
    split: Callable[[torch.Tensor, BackboneConfig], Sequence[torch.Tensor]]


class Parallel(Enum):
    """How the tensor-parallel ranks share a native tensor, in equal runs in the order of ranks. Axes are counted
    behind that of layers."""

    replicated = "replicated"  # every rank has all of it
    columns = "columns"  # runs of the first axis: outputs of a linear layer
    gated_columns = "gated_columns"  # runs of each half of the first axis: a rank has its gate part, then its up part
    rows = "rows"  # runs of the second axis: inputs of a linear layer
    vocabulary = "vocabulary"  # runs of the first axis, which has a row for each token id, padded for the ranks


@dataclass(frozen=True)
class Rule:
    """One native tensor: its name in the model (`MODEL_PREFIX` aside), the foreign tensors it is made of, and how
    ranks share it.

    Foreign names hold `{layer}` where there is one for each layer; native ones then have the layer as first axis.
    """

    native: str
    foreign: tuple[str, ...]
    layout: Layout
    parallel: Parallel = Parallel.replicated

    @property
    def vocabulary(self) -> bool:
        """Whether it has one row for each token id."""
        return self.parallel is Parallel.vocabulary

    @property
    def layered(self) -> bool:
        return LAYER in self.foreign[0]

    def names(self, layer: int | None) -> list[str]:
        """Foreign names, of `layer` where the rule is layered."""
        return [name.replace(LAYER, str(layer)) for name in self.foreign]


def embedding_rule(rules: Sequence[Rule]) -> Rule:
    """The rule of the embedding, which comes first of those with a row for each token id."""
    return next(rule for rule in rules if rule.vocabulary)


def joined(parts: Sequence[torch.Tensor], axis: int = 0) -> torch.Tensor:
    """One after the other along an axis."""
    import torch

    return torch.cat(list(parts), dim=axis)


def _fuse_qkv(parts: Sequence[torch.Tensor], backbone: BackboneConfig) -> torch.Tensor:
    groups = [part.reshape(backbone.kv_heads, -1, *part.shape[1:]) for part in parts]
    return joined(groups, axis=1).flatten(0, 1)


def _split_qkv(fused: torch.Tensor, backbone: BackboneConfig) -> list[torch.Tensor]:
    head = head_dim(backbone)
    sizes = [head * (backbone.heads // backbone.kv_heads), head, head]
    groups = fused.reshape(backbone.kv_heads, -1, *fused.shape[1:])
    return [part.flatten(0, 1) for part in groups.split(sizes, dim=1)]


def _fuse_blocks(parts: Sequence[torch.Tensor], backbone: BackboneConfig) -> torch.Tensor:
    head = head_dim(backbone)
    return _fuse_qkv(
        parts[0].split([head * backbone.heads, head * backbone.kv_heads, head * backbone.kv_heads]), backbone
    )


def head_dim(backbone: BackboneConfig) -> int:
    """Width of one attention head."""
    return backbone.head_dim or backbone.hidden // backbone.heads


COPY = Layout(fuse=lambda parts, _: parts[0], split=lambda whole, _: [whole])
"""One tensor, as it is."""

HALVES = Layout(fuse=lambda parts, _: joined(parts), split=lambda whole, _: whole.chunk(2))
"""Two of equal size, one after the other along the first axis: gate, then up."""

QKV = Layout(fuse=_fuse_qkv, split=_split_qkv)
"""Query, key, value; rows go by key-value group: the group's query heads, its key head, its value head."""

QKV_BLOCKS = Layout(fuse=_fuse_blocks, split=lambda whole, backbone: [joined(_split_qkv(whole, backbone))])
"""All queries, then all keys, then all values, in one tensor."""

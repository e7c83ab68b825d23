"""What a part of a speech model is to conversions, and its tensors there and back, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch

from checkpoints.claims import check_claims
from checkpoints.formats.source import TensorSource
from checkpoints.rules import Rule
from configs.schema import BackboneConfig
from runtime.exits import BadInput


@dataclass(frozen=True)
class Placed:
    """A rule where it applies. layers: how many, of a layered rule. backbone: what its layout goes by, if by any.
    optional: published models without its tensors there are too."""

    rule: Rule
    layers: int = 0
    backbone: BackboneConfig | None = None
    optional: bool = False

    def names(self) -> list[list[str]]:
        """Foreign names, of each layer."""
        return [self.rule.names(layer) for layer in (range(self.layers) if self.rule.layered else (None,))]

    def fuse(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.rule.layout.fuse(parts, self.backbone or BackboneConfig())

    def split(self, whole: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.rule.layout.split(whole, self.backbone or BackboneConfig())


@dataclass(frozen=True)
class Part:
    """prefixes: what names of its tensors begin with in one folder or another; written is the first. placed: of a
    config.json and a prefix. elsewhere: beginnings, behind the prefix, of names that are no part of it."""

    name: str
    prefixes: tuple[str, ...]
    placed: Callable[[Mapping[str, Any], str], list[Placed]]
    elsewhere: tuple[str, ...] = ()


def native_tensors(
    part: Part, source: TensorSource, config_json: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Native names and tensors of a part, layers stacked. Raises BadInput for a source that has no such part, lacks a
    tensor of it, or has one under its prefix that nothing claims."""
    for placed in claimed(part, source.names, config_json, source.folder):
        made = [placed.fuse([source.read(name) for name in names]) for names in placed.names()]
        yield placed.rule.native, torch.stack(made) if placed.rule.layered else made[0]


def foreign_tensors(
    part: Part, held: Set[str], read: Callable[[str], torch.Tensor], config_json: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Published names and tensors of a part, of the native names `held`. Raises BadInput where one lacks."""
    for placed in part.placed(config_json, part.prefixes[0]):
        native = placed.rule.native
        if native not in held:
            if placed.optional:
                continue
            raise BadInput(f"no tensor {native} of {part.name}")
        whole = read(native)
        for names, one in zip(placed.names(), whole if placed.rule.layered else [whole], strict=True):
            yield from zip(names, placed.split(one), strict=True)


def claimed(part: Part, names: Set[str], config_json: Mapping[str, Any], where: object) -> list[Placed]:
    """The rules that apply to a folder with these names, which every tensor of the part is claimed by, once."""
    for prefix in part.prefixes:
        possible = part.placed(config_json, prefix)
        if any(one.names()[0][0] in names for one in possible):
            break
    else:
        raise BadInput(f"{where}: has no {part.name}: no names that begin with {', '.join(part.prefixes)}")
    found = [one for one in possible if not one.optional or one.names()[0][0] in names]
    elsewhere = tuple(prefix + beginning for beginning in part.elsewhere)
    mine = {name for name in names if name.startswith(prefix) and not (elsewhere and name.startswith(elsewhere))}
    check_claims(((one.rule.native, each) for one in found for each in one.names()), mine, where)
    return found

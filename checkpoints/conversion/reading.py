"""Sources of a conversion, whatever their format, as slabs: native tensors, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from checkpoints.card import LeftOut
from checkpoints.claims import check_claims
from checkpoints.conversion.moves import Layouts
from checkpoints.formats.huggingface import CONFIG_FILE, HuggingFaceReader
from checkpoints.formats.source import Format, TensorSource, detect, open_source
from checkpoints.layout import TENSORS
from checkpoints.lora import MergedReader
from checkpoints.manifest import MODEL_PREFIX
from checkpoints.maps import of_backbone, of_config
from checkpoints.rules import Rule, embedding_rule
from checkpoints.shapes import check_foreign_shapes, check_native_shape
from checkpoints.slices import numbered
from checkpoints.strips import Strips
from configs.schema import BackboneConfig
from runtime.exits import BadInput

_HEAD = "lm_head.weight"
_MEGATRONS = ("embedding.word_embeddings.", "decoder.layers.")


@dataclass(frozen=True)
class Part:
    """One tensor of a source that was read for a slab: its name there, and its place where it is one of a stack."""

    name: str
    place: tuple[int, ...]
    held: Strips


class SlabSource(Protocol):
    """A source by the rules of a backbone."""

    format: str
    rules: list[Rule]
    split: bool
    """Whether a slab is made of several tensors by the rule's layout, rather than being one."""

    def shape_and_dtype(self, rule: Rule, layer: int | None) -> tuple[tuple[int, ...], torch.dtype]:
        """Of a slab, without reading data."""

    def read(self, rule: Rule, layer: int | None) -> list[Part]:
        """What a slab is made of, as it lies in mapped files."""

    def release(self) -> bool:
        """Let go of what was mapped, so that it no longer is this process's; whether this could be done without opening
        the source again."""

    def left_out(self) -> list[LeftOut]:
        """Tensors that no rule claims and none needs to. Raises BadInput for those that one would have to, and for
        tensors that rules name and the source lacks."""

    def files(self) -> list[Path]:
        """All that it reads."""


def open_slabs(path: Path, backbone: BackboneConfig, partly: bool = False) -> SlabSource:
    """Open what lies at `path`. Raises BadInput for a format that is not read, and for a damaged source."""
    if is_huggingface(path):
        return HuggingFaceSlabs(path, backbone)
    kind, place = detect(path)
    if kind is Format.native:
        return NativeSlabs(place, backbone, partly)
    source = open_source(path)
    megatrons = any(name.startswith(_MEGATRONS) for name in source.names)
    return (MegatronSlabs if megatrons else ForeignSlabs)(source, kind, backbone)


def is_huggingface(path: Path) -> bool:
    """Whether this is a Hugging Face folder, with whatever weights: those that are not read are refused by its reader.
    Training programs put config.json beside checkpoints of their own too."""
    if not (path / CONFIG_FILE).is_file():
        return False
    try:
        return detect(path)[0] in (Format.huggingface, Format.torch_file)
    except BadInput:
        return True


class HuggingFaceSlabs:
    """A folder with an architecture's own names."""

    format = "huggingface"
    split = True

    def __init__(self, folder: Path, backbone: BackboneConfig) -> None:
        reader = HuggingFaceReader(folder)
        self._source: TensorSource = reader
        architecture = of_config(reader.config)
        self.rules = architecture.rules(backbone)
        self._backbone = backbone
        self._layouts = Layouts(backbone)
        self._buffers = architecture.buffers
        self._rows = self._source.config.get(architecture.vocabulary_key)

    def shape_and_dtype(self, rule: Rule, layer: int | None) -> tuple[tuple[int, ...], torch.dtype]:
        found = [self._source.shape_and_dtype(name) for name in rule.names(layer)]
        dtypes = {dtype for _, dtype in found}
        if len(dtypes) > 1:
            raise BadInput(f"{self._source.folder}: {', '.join(rule.names(layer))} have dtypes of their own")
        named = [(name, shape) for name, (shape, _) in zip(rule.names(layer), found, strict=True)]
        check_foreign_shapes(rule, named, self._backbone, self._source.folder)
        if rule.vocabulary and self._rows is not None and found[0][0][0] != self._rows:
            name, shape = named[0]
            raise BadInput(f"{self._source.folder}: {name} has shape {list(shape)}, config.json says {self._rows} rows")
        return self._layouts.fused(rule.layout, [shape for shape, _ in found]), dtypes.pop()

    def read(self, rule: Rule, layer: int | None) -> list[Part]:
        return [Part(name, (), Strips.of(self._source.read(name))) for name in rule.names(layer)]

    def release(self) -> bool:
        if isinstance(self._source, HuggingFaceReader):
            self._source.release()
            return True
        return False

    def left_out(self) -> list[LeftOut]:
        def needless(name: str) -> str | None:
            if name.endswith(self._buffers):
                return "a buffer that is computed here"
            if not self._backbone.tied_embeddings or name != _HEAD:
                return None
            self._check_tied()
            return "the tied embedding a second time"

        claims = ((rule.native, rule.names(layer)) for rule, layer in _applied(self.rules, self._backbone))
        return check_claims(claims, self._source.names, self._source.folder, needless)

    def _check_tied(self) -> None:
        """Raise BadInput where a head that counts as the embedding once more is another matrix."""
        [embedding] = embedding_rule(self.rules).foreign
        head, tied = self._source.read(_HEAD), self._source.read(embedding)
        if head.shape != tied.shape or head.dtype != tied.dtype or not torch.equal(head, tied):
            raise BadInput(
                f"{self._source.folder}: {_HEAD} is not {embedding}, though tie_word_embeddings says so; if it is "
                "meant, set that to false there and backbone.tied_embeddings=false here"
            )

    def files(self) -> list[Path]:
        return sorted(path for path in self._source.folder.iterdir() if path.is_file())


class ForeignSlabs(HuggingFaceSlabs):
    """The same names in files of another format, which do not say the architecture: it is the backbone's."""

    def __init__(self, source: TensorSource, kind: Format, backbone: BackboneConfig) -> None:
        self.format = kind.value
        self._source = source
        architecture = of_backbone(backbone)
        self.rules = architecture.rules(backbone)
        self._backbone = backbone
        self._layouts = Layouts(backbone)
        self._buffers = architecture.buffers
        self._rows = None

    def files(self) -> list[Path]:
        return _all_files(self._source.folder)


class NativeSlabs:
    """A native checkpoint, low-rank updates merged."""

    format = "native"
    split = False

    def __init__(self, checkpoint: Path, backbone: BackboneConfig, partly: bool = False) -> None:
        self._checkpoint = checkpoint
        self._reader = MergedReader(checkpoint)
        self.rules = of_backbone(backbone).rules(backbone)
        self._backbone = backbone
        self._partly = partly

    def shape_and_dtype(self, rule: Rule, layer: int | None) -> tuple[tuple[int, ...], torch.dtype]:
        held = self._reader.tensors.get(MODEL_PREFIX + rule.native)
        if held is None:
            raise BadInput(f"{self._checkpoint} has no {rule.native}: not this backbone, {self._backbone.name}")
        if rule.layered and held.shape[0] != self._backbone.layers:
            layers = self._backbone.layers
            raise BadInput(f"{self._checkpoint} has {held.shape[0]} layers, {self._backbone.name} {layers}")
        shape = held.shape[1:] if rule.layered else held.shape
        check_native_shape(rule.native, shape, self._backbone, self._checkpoint)
        return shape, getattr(torch, held.dtype)

    def read(self, rule: Rule, layer: int | None) -> list[Part]:
        place = () if layer is None else (layer,)
        return [Part(rule.native, place, self._reader.strips(MODEL_PREFIX + rule.native, layer))]

    def release(self) -> bool:
        self._reader.release()
        return True

    def left_out(self) -> list[LeftOut]:
        for rule in self.rules:
            self.shape_and_dtype(rule, None)
        claims = ((rule.native, [MODEL_PREFIX + rule.native]) for rule in self.rules)
        why = "the architecture has no place for it" if self._partly else None
        return check_claims(claims, set(self._reader.tensors), self._checkpoint, lambda _: why)

    def files(self) -> list[Path]:
        folders = (self._checkpoint, self._checkpoint / TENSORS)
        return sorted(path for folder in folders for path in folder.iterdir() if path.is_file())


class MegatronSlabs:
    """Any source with Megatron's names: native ones, each layer by itself."""

    split = False

    def __init__(self, source: TensorSource, kind: Format, backbone: BackboneConfig) -> None:
        self.format = kind.value
        self._source = source
        self.rules = of_backbone(backbone).rules(backbone)
        self._backbone = backbone

    def shape_and_dtype(self, rule: Rule, layer: int | None) -> tuple[tuple[int, ...], torch.dtype]:
        shape, dtype = self._source.shape_and_dtype(numbered(rule.native, layer))
        check_native_shape(rule.native, shape, self._backbone, self._source.folder)
        return shape, dtype

    def read(self, rule: Rule, layer: int | None) -> list[Part]:
        name = numbered(rule.native, layer)
        return [Part(name, (), Strips.of(self._source.read(name)))]

    def release(self) -> bool:
        return False

    def left_out(self) -> list[LeftOut]:
        claims = ((rule.native, [numbered(rule.native, layer)]) for rule, layer in _applied(self.rules, self._backbone))
        return check_claims(claims, self._source.names, self._source.folder)

    def files(self) -> list[Path]:
        return _all_files(self._source.folder)


def _all_files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def _applied(rules: Sequence[Rule], backbone: BackboneConfig) -> Iterator[tuple[Rule, int | None]]:
    """Every application of the rules."""
    for rule in rules:
        yield from ((rule, layer) for layer in (range(backbone.layers) if rule.layered else (None,)))

"""Hugging Face folders to native checkpoints and back, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from checkpoints.atomic import replacing
from checkpoints.formats.huggingface import (
    VOCABULARY_FILE,
    HuggingFaceReader,
    grown_tokenizer,
    write_json,
    write_model_files,
    write_tokenizer,
    write_weights,
)
from checkpoints.formats.native import NativeReader, Slab, write_tensors
from checkpoints.layout import STATE_FILE, TENSORS
from checkpoints.lora import MergedReader
from checkpoints.manifest import (
    MODEL_PREFIX,
    Manifest,
    count_parameters,
    problems,
    read_manifest,
    record_files,
    versions,
    write_manifest,
)
from checkpoints.maps import describe, differences, of_backbone, of_config
from checkpoints.rules import Rule
from checkpoints.vocabulary_surgery import describe_growth, grow_rows
from configs.schema import BackboneConfig, NewRows, Precision
from runtime.exits import BadInput, StoppedEarly

_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}


def import_huggingface(
    source: Path,
    native: Path,
    backbone: BackboneConfig,
    *,
    text_size: int,
    padded_size: int,
    vocabulary: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    seed: int = 0,
    new_rows: NewRows = NewRows.covariance,
    stop: object = None,
) -> Path:
    """Convert a Hugging Face folder into the native checkpoint `native` (step 0, no optimiser state).

    Tensors keep their dtype and bits. The vocabulary grows from the first `text_size` rows to `padded_size`
    (`vocabulary_surgery.grow_rows`, by `new_rows`, drawn with `seed`); both equal to the source's rows change nothing.
    `texts` are files to put beside. Needs no process group; it loads on any topology. Returns `native`.

    Raises BadInput where the folder is not this backbone, has tensors without a place, or the disk fails;
    StoppedEarly when `stop` turns true. `native` then is as it was.
    """
    reader = HuggingFaceReader(source)
    if found := differences(backbone, reader.config):
        raise BadInput(f"{source} is another model: {'; '.join(found)}")
    architecture = of_config(reader.config)
    rules = architecture.rules(backbone)
    _check_names(reader, rules, backbone, architecture.buffers)
    slabs = [
        slab for rule in rules for slab in _slabs(rule, reader, backbone, text_size, padded_size, seed, stop, new_rows)
    ]
    with _writing(native), replacing(native) as folder:
        tensors = write_tensors(folder / TENSORS, slabs)
        for name, text in {STATE_FILE: "{}", **(texts or {})}.items():
            (folder / name).write_text(text, encoding="utf-8")
        manifest = Manifest(
            step=0,
            topology={},
            tensors=tensors,
            parameters=count_parameters(tensors),
            files=record_files(folder, {}),
            vocabulary=None if vocabulary is None else dict(vocabulary),
            origin={"huggingface": source.name, **describe_growth(text_size, padded_size, seed, new_rows)},
            versions=versions(),
            backbone=describe(backbone),
        )
        write_manifest(folder, manifest)
    return native


def export_huggingface(
    native: Path,
    out: Path,
    backbone: BackboneConfig,
    *,
    vocabulary: Mapping[str, Any],
    tokenizer_json: str,
    token_names: Sequence[str],
    dtype: Precision = Precision.fp32,
    stop: object = None,
) -> Path:
    """Convert a native checkpoint into a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    `vocabulary` describes the checkpoint's ids (`text_size`, `specials`, `end_of_text`, `ranges`), `tokenizer_json`
    is the text tokenizer, and `token_names` name the ids from `text_size` on, special tokens first. The model keeps
    every native row, padding included, so its logits are the native model's; low-rank updates are merged into the
    weights. Optimiser state stays behind.

    Raises BadInput where the checkpoint is damaged, is not this backbone, or has another vocabulary, or the disk
    fails; StoppedEarly when `stop` turns true. `out` then is as it was.
    """
    if found := problems(native):
        raise BadInput(f"refused checkpoint {native}: {found[0]}")
    recorded = read_manifest(native).vocabulary
    if recorded is not None and recorded != _plain(vocabulary):
        raise BadInput(f"{native} was made with another vocabulary")
    reader = MergedReader(native)
    architecture = of_backbone(backbone)
    rules = architecture.rules(backbone)
    rows = _check_shapes(reader, rules, backbone)
    size = vocabulary["text_size"] + len(token_names)
    if size != max(end for _, end in vocabulary["ranges"].values()) or size > rows:
        raise BadInput(f"{native}: {rows} vocabulary rows, {size} token names; they do not fit the vocabulary")
    end_of_text = Tokenizer.from_str(tokenizer_json).token_to_id(vocabulary["end_of_text"])
    if end_of_text is None:
        raise BadInput(f"the tokenizer has no token {vocabulary['end_of_text']}")
    tokenizer = grown_tokenizer(tokenizer_json, vocabulary["text_size"], token_names, len(vocabulary["specials"]))
    target = _DTYPES[dtype]
    total = sum(_elements(reader, rule) for rule in rules) * target.itemsize
    with _writing(out), replacing(out) as folder:
        write_weights(folder, _foreign_tensors(reader, rules, backbone, target, stop), total)
        settings = {**architecture.write_config(backbone), architecture.vocabulary_key: rows}
        write_model_files(folder, settings, rows, end_of_text, target)
        write_tokenizer(folder, tokenizer, vocabulary["end_of_text"], backbone.max_positions)
        write_json(folder / VOCABULARY_FILE, vocabulary)  # so that the model can give a corpus its codes
    return out


# --- Hugging Face to native -----------------------------------------------------------------------------------------


def _check_names(
    reader: HuggingFaceReader, rules: Sequence[Rule], backbone: BackboneConfig, buffers: tuple[str, ...]
) -> None:
    placed = {name for rule in rules for layer in _layers(rule, backbone) for name in rule.names(layer)}
    if missing := sorted(placed - reader.names):
        raise BadInput(f"{reader.folder}: has no tensor {missing[0]} ({len(missing)} missing)")
    repeated = ("lm_head.weight",) if backbone.tied_embeddings else ()  # some files hold the tied embedding twice
    odd = sorted(name for name in reader.names - placed if not name.endswith((*buffers, *repeated)))
    if odd:
        raise BadInput(f"{reader.folder}: no place for tensor {odd[0]} ({len(odd)} such)")


def _slabs(
    rule: Rule,
    reader: HuggingFaceReader,
    backbone: BackboneConfig,
    text_size: int,
    padded_size: int,
    seed: int,
    stop: object,
    new_rows: NewRows,
) -> Iterator[Slab]:
    name = MODEL_PREFIX + rule.native

    def make(layer: int | None) -> torch.Tensor:
        _check_stop(stop)
        whole = rule.layout.fuse([reader.read(source) for source in rule.names(layer)], backbone)
        return grow_rows(whole, text_size, padded_size, seed, name, new_rows) if rule.vocabulary else whole

    for layer in _layers(rule, backbone):
        parts = [reader.shape_and_dtype(source) for source in rule.names(layer)]
        shape = rule.layout.fuse([torch.empty(part, device="meta") for part, _ in parts], backbone).shape
        yield Slab(
            name,
            (padded_size, *shape[1:]) if rule.vocabulary else tuple(shape),
            parts[0][1],
            partial(make, layer),
            layer,
            backbone.layers if rule.layered else None,
        )


# --- native to Hugging Face -----------------------------------------------------------------------------------------


def _check_shapes(reader: NativeReader, rules: Sequence[Rule], backbone: BackboneConfig) -> int:
    """Whether the checkpoint has what the rules name; returns its vocabulary rows."""
    for rule in rules:
        held = reader.tensors.get(MODEL_PREFIX + rule.native)
        if held is None:
            raise BadInput(f"{reader.folder.parent} has no {rule.native}: not this backbone, {backbone.name}")
        if rule.layered and held.shape[0] != backbone.layers:
            raise BadInput(f"{reader.folder.parent} has {held.shape[0]} layers, {backbone.name} {backbone.layers}")
    return reader.tensors[MODEL_PREFIX + rules[0].native].shape[0]


def _foreign_tensors(
    reader: NativeReader, rules: Sequence[Rule], backbone: BackboneConfig, dtype: torch.dtype, stop: object
) -> Iterator[tuple[str, torch.Tensor]]:
    for rule in rules:
        for layer in _layers(rule, backbone):
            _check_stop(stop)
            parts = rule.layout.split(reader.read(MODEL_PREFIX + rule.native, layer), backbone)
            for name, part in zip(rule.names(layer), parts, strict=True):
                yield name, part.to(dtype).contiguous()


def _elements(reader: NativeReader, rule: Rule) -> int:
    return torch.Size(reader.tensors[MODEL_PREFIX + rule.native].shape).numel()


# --- both -----------------------------------------------------------------------------------------------------------


def _layers(rule: Rule, backbone: BackboneConfig) -> Sequence[int | None]:
    return range(backbone.layers) if rule.layered else (None,)


def _check_stop(stop: object) -> None:
    if stop:
        raise StoppedEarly("conversion stopped; nothing was kept, the same command starts it again")


def _plain(value: Any) -> Any:
    """The value as JSON would give it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"cannot write {folder}: {error.strerror or error}") from error

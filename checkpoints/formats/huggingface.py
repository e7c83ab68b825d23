"""Hugging Face model folders: config.json, safetensors files, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from checkpoints.formats.huggingface_config import read_config
from checkpoints.formats.safetensors_folder import INDEX_FILE, WEIGHTS_FILE, locate
from checkpoints.formats.safetensors_header import StoredTensor
from runtime.exits import BadInput

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocabulary.json"  # named ranges of ids; Megaphone's own, ignored by transformers
ONE_FILE = 5 * 10**9  # bytes; above it weights are written as several files with an index

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class HuggingFaceReader:
    """Tensors of a Hugging Face folder, read from memory-mapped safetensors one at a time. Pickles are not read."""

    def __init__(self, folder: Path) -> None:
        """Raises BadInput where config.json, an index or a header is not what it should be; no data is read."""
        self.folder = folder
        self.config = read_config(folder / CONFIG_FILE)
        self._open: dict[str, Any] = {}
        self._located = locate(folder)

    @property
    def names(self) -> set[str]:
        return set(self._located)

    def shape_and_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of a tensor, without reading it."""
        _, stored = self._place(name)
        dtype = _DTYPES.get(stored.dtype)
        if dtype is None:
            raise BadInput(f"{self.folder}: {name} has dtype {stored.dtype}; only floats are read")
        return stored.shape, dtype

    def read(self, name: str) -> torch.Tensor:
        """The tensor, a view of the mapped file."""
        file, _ = self._place(name)
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise BadInput(f"{self.folder / file}: cannot be read ({error})") from error
        return self._open[file].get_tensor(name)

    def release(self) -> None:
        """Unmap the files that were read."""
        self._open.clear()

    def _place(self, name: str) -> tuple[str, StoredTensor]:
        if name not in self._located:
            raise BadInput(f"{self.folder}: has no tensor {name}")
        return self._located[name]


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], total: int, one_file: int = ONE_FILE
) -> None:
    """Write tensors as they come, holding at most `one_file` bytes; `total` is the bytes of all of them."""
    if total <= one_file:
        _save_file(dict(tensors), folder / WEIGHTS_FILE)
        return
    weight_map: dict[str, str] = {}
    parts: list[Path] = []
    for batch in _batches(tensors, one_file):
        parts.append(folder / f"part-{len(parts)}")
        _save_file(batch, parts[-1])
        weight_map |= dict.fromkeys(batch, parts[-1].name)
    final = {part.name: f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i, part in enumerate(parts, 1)}
    for part in parts:
        part.rename(folder / final[part.name])
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: final[part] for name, part in sorted(weight_map.items())},
    }
    write_json(folder / INDEX_FILE, index)


def _save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write one file; safetensors closes it to all but the owner, so it gets the folder's rights back."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what a full disk is to this library
        raise OSError(f"{error}") from error
    path.chmod(path.parent.stat().st_mode & 0o666)


def _batches(tensors: Iterable[tuple[str, torch.Tensor]], most: int) -> Iterator[dict[str, torch.Tensor]]:
    batch: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if batch and size + tensor.nbytes > most:
            yield batch
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.nbytes
    if batch:
        yield batch


def grown_tokenizer(tokenizer_json: str, text_size: int, names: Sequence[str], specials: int) -> str:
    """The text tokenizer with `names` as added tokens at ids from `text_size` on; returns its JSON.

    The first `specials` names are special tokens, which decoding can skip; the others are ordinary added tokens. Ids
    that the text model pads its own tokenizer with are named `<|reserved_ID|>`. Raises BadInput if a token does not
    land on its id.
    """
    content = json.loads(tokenizer_json)
    first = Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True)
    reserved = [f"<|reserved_{index}|>" for index in range(first, text_size)]
    content["added_tokens"] += [
        {
            "id": first + offset,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": offset < len(reserved) + specials,
        }
        for offset, name in enumerate([*reserved, *names])
    ]
    grown = json.dumps(content, ensure_ascii=False)
    tokenizer = Tokenizer.from_str(grown)
    for index, name in enumerate(names, text_size):
        if tokenizer.token_to_id(name) != index:
            raise BadInput(f"token {name} cannot have id {index}: the tokenizer gives it {tokenizer.token_to_id(name)}")
    return grown


def model_files(architecture: Mapping[str, Any], vocabulary_rows: int, end_of_text: int, dtype: str) -> dict[str, str]:
    """config.json and generation_config.json; the document separator begins, ends and pads. dtype: torch's name."""
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)
    config = {**architecture, "vocab_size": vocabulary_rows, "dtype": dtype, **ids}
    return {CONFIG_FILE: json_text(config), "generation_config.json": json_text(ids)}


def tokenizer_config(end_of_text: str, longest: int) -> dict[str, str]:
    """tokenizer_config.json, for AutoTokenizer to load tokenizer.json; `longest`: the model's context in tokens."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), end_of_text),
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
    }
    return {"tokenizer_config.json": json_text(settings)}


def json_text(content: Mapping[str, Any]) -> str:
    """An object as indented JSON."""
    return json.dumps(content, indent=2) + "\n"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json_text(content), encoding="utf-8")

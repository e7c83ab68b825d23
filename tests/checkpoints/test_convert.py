"""Hugging Face to native and back: bit for bit, with a grown vocabulary, or one clear line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.convert import export_huggingface, import_huggingface
from checkpoints.formats import huggingface
from checkpoints.formats.native import NativeReader
from checkpoints.inspect import verify
from checkpoints.manifest import MODEL_PREFIX, read_manifest
from checkpoints.rules import HALVES, QKV
from checkpoints.vocabulary_surgery import grow_rows
from configs.schema import BackboneConfig, Positions, Precision, RopeScaling, RopeScalingKind
from runtime.exits import BadInput, StoppedEarly
from tests.checkpoints.disks import small_disk
from tests.checkpoints.models import CODES, ROWS, SPECIALS, backbone, rewrite, tensors, tokenizer_json, vocabulary
from tests.checkpoints.models import write_model as write

NAMES = (*SPECIALS, *CODES)
EMBEDDING = MODEL_PREFIX + "embedding.word_embeddings.weight"


def to_native(source: Path, native: Path, of: BackboneConfig, **options: Any) -> Path:
    return import_huggingface(source, native, of, **{"text_size": ROWS, "padded_size": ROWS, **options})


def to_huggingface(native: Path, out: Path, of: BackboneConfig, text_size: int = ROWS, **options: Any) -> Path:
    names = options.pop("token_names", NAMES)
    described = options.pop("vocabulary", vocabulary(text_size))
    text = tokenizer_json(text_size)
    return export_huggingface(native, out, of, vocabulary=described, tokenizer_json=text, token_names=names, **options)


@pytest.mark.parametrize("dtype", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": False}, {"qkv_bias": True, "architecture": "qwen2"}, {"kv_heads": 4, "head_dim": 16}],
    ids=["tied", "untied", "qkv_bias", "wide_heads"],
)
def test_there_and_back_is_bit_identical(tmp_path: Path, changes: dict[str, Any], dtype: Precision) -> None:
    of = backbone(**changes)
    source = write(tmp_path / "source", of, torch.bfloat16 if dtype is Precision.bf16 else torch.float32)
    native = to_native(source, tmp_path / "native", of)
    assert verify(native) == []
    out = to_huggingface(native, tmp_path / "out", of, dtype=dtype, token_names=(), vocabulary=vocabulary(ROWS, (), ()))

    before, after = tensors(source), tensors(out)
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_loads_and_its_text_logits_are_the_source_models(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    of = backbone(tied_embeddings=tied)
    source, text_size, padded = write(tmp_path / "source", of), ROWS - 6, 128
    described = vocabulary(text_size)
    native = to_native(
        source, tmp_path / "native", of, text_size=text_size, padded_size=padded, vocabulary=described, seed=3
    )
    out = to_huggingface(native, tmp_path / "out", of, text_size)

    ids = torch.tensor([[1, 5, 80, 3]])
    exported, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        ours = exported(ids).logits
    assert ours.shape[-1] == padded
    torch.testing.assert_close(ours[..., :text_size], theirs[..., :text_size], rtol=0, atol=1e-6)
    assert (exported.config.eos_token_id, exported.config.pad_token_id, exported.config.vocab_size) == (0, 0, padded)
    assert exported.generation_config.eos_token_id == 0

    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == text_size + len(NAMES)
    assert tokenizer.convert_tokens_to_ids(list(NAMES)) == list(range(text_size, text_size + len(NAMES)))
    sentence = "w4 <|begin|><|code_9|><|code_0|> w7"
    encoded = tokenizer.encode(sentence, add_special_tokens=False)
    assert encoded == [4, text_size, text_size + 11, text_size + 2, 7]
    assert tokenizer.decode(encoded, skip_special_tokens=True).split() == ["w4", "<|code_9|>", "<|code_0|>", "w7"]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"


def test_padding_of_the_text_tokenizer_gets_reserved_names() -> None:
    from tokenizers import Tokenizer

    grown = Tokenizer.from_str(huggingface.grown_tokenizer(tokenizer_json(20), 24, NAMES, len(SPECIALS)))
    assert grown.token_to_id("<|reserved_23|>") == 23
    assert [grown.token_to_id(name) for name in NAMES] == list(range(24, 24 + len(NAMES)))


def test_a_name_that_the_tokenizer_has_already_is_refused() -> None:
    with pytest.raises(BadInput, match="w3 cannot have id 20"):
        huggingface.grown_tokenizer(tokenizer_json(20), 20, ["w3"], 0)


def test_new_rows_have_the_text_rows_statistics_and_are_recorded(tmp_path: Path) -> None:
    of = backbone(tied_embeddings=False)
    source = write(tmp_path / "source", of)
    natives = [
        to_native(source, tmp_path / f"native{seed}{again}", of, padded_size=8192, seed=seed)
        for seed, again in ((1, 0), (1, 1), (2, 0))
    ]
    readers = [NativeReader(native / "tensors") for native in natives]
    first, again, other = (reader.read(EMBEDDING) for reader in readers)
    old = tensors(source)["model.embed_tokens.weight"]

    assert first.shape == (8192, of.hidden) and torch.equal(first[:ROWS], old)
    assert torch.equal(first, again) and not torch.equal(first[ROWS:], other[ROWS:])
    assert not torch.equal(first[ROWS:], readers[0].read(MODEL_PREFIX + "output_layer.weight")[ROWS:])
    spread = old.std(dim=0, correction=0)
    assert ((first[ROWS:].mean(0) - old.mean(0)).abs() < 5 * spread / (8192 - ROWS) ** 0.5).all()
    torch.testing.assert_close(first[ROWS:].std(0), spread, rtol=0.05, atol=0)
    origin = read_manifest(natives[0]).origin
    assert (origin["kept_rows"], origin["rows"], origin["seed"]) == (ROWS, 8192, 1) and "covariance" in origin[
        "new_rows"
    ]


def test_rows_cannot_shrink_below_the_text() -> None:
    with pytest.raises(BadInput, match="4 rows"):
        grow_rows(torch.zeros(4, 2), 5, 8, 0, "embedding")


@given(groups=st.integers(1, 4), queries=st.integers(1, 4), width=st.integers(1, 3), bias=st.booleans())
def test_fused_heads_split_into_what_they_were(groups: int, queries: int, width: int, bias: bool) -> None:
    of = backbone(heads=groups * queries, kv_heads=groups, head_dim=width)
    inner = () if bias else (3,)
    parts = [torch.randn(heads * width, *inner) for heads in (groups * queries, groups, groups)]
    fused = QKV.fuse(parts, of)
    assert all(torch.equal(a, b) for a, b in zip(parts, QKV.split(fused, of), strict=True))
    # Megatron's order: every key-value group holds its query heads, then its key, then its value.
    last = fused.reshape(groups, queries + 2, width, *inner)[-1]
    assert torch.equal(last[-1], parts[2].reshape(groups, width, *inner)[-1])
    assert torch.equal(last[0], parts[0].reshape(groups, queries, width, *inner)[-1, 0])
    halves = [torch.randn(5, 2), torch.randn(5, 2)]
    assert all(torch.equal(a, b) for a, b in zip(halves, HALVES.split(HALVES.fuse(halves, of), of), strict=True))


def test_large_weights_are_written_in_parts_that_load(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    of = backbone()
    source = write(tmp_path / "source", of)
    old = tensors(source)
    (source / "model.safetensors").unlink()
    total = sum(tensor.nbytes for tensor in old.values())
    huggingface.write_weights(source, old.items(), total, one_file=total // 3)

    assert len(list(source.glob("model-*-of-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in old.items())
    native = to_native(source, tmp_path / "native", of)
    assert torch.equal(NativeReader(native / "tensors").read(EMBEDDING), old["model.embed_tokens.weight"])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 4}, "layers: 3 there, 4 in"),
        ({"kv_heads": 1}, "kv_heads: 2 there, 1 in"),
        ({"rope_base": 500.0}, "rope_base: 10000"),
        ({"tied_embeddings": False}, "tied_embeddings: True there, False"),
        ({"qkv_bias": True}, "qkv_bias: False there, True in"),
    ],
)
def test_another_backbone_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    source = write(tmp_path / "source", backbone())
    with pytest.raises(BadInput, match=said):
        to_native(source, tmp_path / "native", backbone(**changes))
    assert not (tmp_path / "native").exists()


def test_a_scaling_that_the_backbone_lacks_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", backbone())
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"rope_scaling: llama3 x8 there, None in backbone\.test"):
        to_native(source, tmp_path / "native", backbone())


SCALINGS = (
    RopeScaling(RopeScalingKind.linear, 4.0),
    RopeScaling(RopeScalingKind.llama3, 8.0, 32, 1.0, 4.0),
    RopeScaling(RopeScalingKind.yarn, 4.0, 16),
    RopeScaling(RopeScalingKind.yarn, 4.0, 16, beta_fast=16.0, attention_factor=1.5),
)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.kind.value)
def test_scalings_of_positions_are_told_apart(tmp_path: Path, scaling: RopeScaling) -> None:
    """A folder that transformers writes with a scaling is the backbone that has it, and no other."""
    source = write(tmp_path / "source", backbone(rope_scaling=scaling))
    to_native(source, tmp_path / "native", backbone(rope_scaling=scaling))
    for other in (None, replace(scaling, factor=3.0), *SCALINGS):
        if other != scaling:
            with pytest.raises(BadInput, match="rope_scaling"):
                to_native(source, tmp_path / "other", backbone(rope_scaling=other))


@pytest.mark.parametrize("changes", [{"positions": Positions.sqrt_alibi}, {"qk_norm": True}])
def test_a_backbone_that_llama_is_not_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = write(tmp_path / "source", backbone())
    with pytest.raises(BadInput, match="there, "):
        to_native(source, tmp_path / "native", backbone(**changes))


def test_a_tied_head_has_to_be_the_embedding(tmp_path: Path) -> None:
    source = write(tmp_path / "source", backbone())
    old = tensors(source)
    embedding = old["model.embed_tokens.weight"]
    rewrite(source, old | {"lm_head.weight": embedding.clone()})
    to_native(source, tmp_path / "native", backbone())
    rewrite(source, old | {"lm_head.weight": embedding + (torch.arange(len(embedding)) == 5)[:, None]})
    with pytest.raises(BadInput, match=r"lm_head.weight is not model.embed_tokens.weight, though tie_word_embeddings"):
        to_native(source, tmp_path / "other", backbone())


def test_missing_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", backbone())
    old = tensors(source)
    rewrite(source, {name: tensor for name, tensor in old.items() if name != "model.norm.weight"})
    with pytest.raises(BadInput, match=r"no tensor model.norm.weight"):
        to_native(source, tmp_path / "native", backbone())
    rewrite(source, old | {"model.layers.0.adapter.weight": torch.zeros(2)})
    with pytest.raises(BadInput, match=r"no place for tensor model.layers.0.adapter.weight"):
        to_native(source, tmp_path / "native", backbone())


def test_damaged_pickled_and_outside_weights_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", backbone())
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"model.safetensors: its header has length .* past the end"):
        to_native(source, tmp_path / "native", backbone())
    weights.rename(source / "pytorch_model.bin")
    with pytest.raises(BadInput, match="only safetensors are read"):
        to_native(source, tmp_path / "native", backbone())
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b.safetensors"}}')
    with pytest.raises(BadInput, match="outside the folder"):
        to_native(source, tmp_path / "native", backbone())


def test_a_damaged_or_foreign_checkpoint_is_not_exported(tmp_path: Path) -> None:
    native = to_native(write(tmp_path / "source", backbone()), tmp_path / "native", backbone(), padded_size=128)
    with pytest.raises(BadInput, match=r"has no output_layer.weight"):
        to_huggingface(native, tmp_path / "out", backbone(tied_embeddings=False))
    with pytest.raises(BadInput, match="do not fit the vocabulary"):
        to_huggingface(native, tmp_path / "out", backbone(), token_names=NAMES[:-1])
    file = native / "tensors" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"refused checkpoint .*__0_0.distcp"):
        to_huggingface(native, tmp_path / "out", backbone())
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    native = to_native(
        write(tmp_path / "source", backbone()),
        tmp_path / "native",
        backbone(),
        padded_size=128,
        vocabulary=vocabulary(ROWS),
    )
    swapped = vocabulary(ROWS) | {"specials": ["<|end|>", "<|begin|>"]}
    with pytest.raises(BadInput, match="another vocabulary"):
        to_huggingface(native, tmp_path / "out", backbone(), vocabulary=swapped)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    of, disk = backbone(hidden=256, ffn=704), tmp_path / "disk"
    source = write(tmp_path / "source", of)
    native = to_native(source, tmp_path / "native", of, padded_size=128)
    with small_disk(disk, 2_000_000):
        for convert in (
            lambda: to_native(source, disk / "native", of),
            lambda: to_huggingface(native, disk / "out", of),
        ):
            with pytest.raises(BadInput, match="cannot write") as raised:
                convert()
            assert "\n" not in str(raised.value)
            assert list(disk.iterdir()) == []


def test_a_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    class After:
        """Asked to stop at the fifth look."""

        looks = 0

        def __bool__(self) -> bool:
            self.looks += 1
            return self.looks >= 5

    source = write(tmp_path / "source", backbone())
    with pytest.raises(StoppedEarly):
        to_native(source, tmp_path / "made" / "native", backbone(), stop=After())
    assert list((tmp_path / "made").iterdir()) == []
    native = to_native(source, tmp_path / "native", backbone(), padded_size=128)
    with pytest.raises(StoppedEarly):
        to_huggingface(native, tmp_path / "made" / "out", backbone(), stop=After())
    assert list((tmp_path / "made").iterdir()) == []

"""Audio parts of transformers' own small models into native namespaces and back, through native files, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from checkpoints.formats.huggingface import HuggingFaceReader
from checkpoints.formats.native import NativeReader
from checkpoints.maps.parts import ADAPTER, CODEC_HEADS, CSM, PARTS, SANM_ENCODER, WHISPER_ENCODER
from checkpoints.maps.parts.part import Part, foreign_tensors, native_tensors
from runtime.exits import BadInput
from tests.checkpoints.models import rewrite, tensors
from tests.data_pipeline.codec_material import sanm_shapes

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    sizes = {"encoder_layers": 3, "decoder_layers": 1, "d_model": 16, "encoder_attention_heads": 2, "num_mel_bins": 8}
    decoder = {"decoder_attention_heads": 2, "decoder_ffn_dim": 8, "encoder_ffn_dim": 32, "vocab_size": 40}
    return WhisperForConditionalGeneration(WhisperConfig(max_source_positions=20, **ids, **sizes, **decoder))


def qwen2_audio() -> nn.Module:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    audio = {"encoder_layers": 2, "d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 8}
    text = {**_SMALL, "model_type": "qwen2", "vocab_size": 40, "num_key_value_heads": 2}
    return Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(audio_config={**audio, "max_source_positions": 20}, text_config=text, audio_token_index=1)
    )


def voxtral() -> nn.Module:
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration

    audio = {**_SMALL, "num_mel_bins": 8, "max_source_positions": 20}
    text = {**_SMALL, "model_type": "llama", "vocab_size": 40, "num_key_value_heads": 2}
    return VoxtralForConditionalGeneration(VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=1))


def musicgen() -> nn.Module:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    sizes = {"vocab_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "num_attention_heads": 2, "hidden_size": 16}
    return MusicgenForCausalLM(MusicgenDecoderConfig(num_codebooks=4, pad_token_id=0, bos_token_id=0, **sizes))


def csm(tied: bool) -> nn.Module:
    from transformers import CsmConfig, CsmForConditionalGeneration

    codec: dict[str, Any] = {
        **_SMALL,
        "model_type": "mimi",
        "num_hidden_layers": 1,
        "num_filters": 4,
        "codebook_size": 16,
    }
    codec |= {"codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 4, "upsample_groups": 16}
    heads = {"num_key_value_heads": 2, "head_dim": 8}
    depth = {**_SMALL, **heads, "hidden_size": 24, "num_codebooks": 4, "vocab_size": 20, "backbone_hidden_size": 32}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "audio_token_id": 1, "audio_eos_token_id": 2}
    codes = {"num_codebooks": 4, "vocab_size": 20, "text_vocab_size": 30, "codebook_pad_token_id": 0}
    config = CsmConfig(
        **_SMALL,
        **heads,
        **ids,
        **codes,
        codebook_eos_token_id=0,
        depth_decoder_config=depth,
        codec_config={**codec, **heads},
        tie_codebooks_embeddings=tied,
        tie_word_embeddings=tied,
    )
    return CsmForConditionalGeneration(config)


CASES: dict[str, tuple[Part, Any, str]] = {
    "whisper": (WHISPER_ENCODER, whisper, "model.encoder."),
    "qwen2_audio": (WHISPER_ENCODER, qwen2_audio, "audio_tower."),
    "linear adapter": (ADAPTER, qwen2_audio, "multi_modal_projector."),
    "voxtral": (WHISPER_ENCODER, voxtral, "audio_tower."),
    "adapter of two layers": (ADAPTER, voxtral, "multi_modal_projector."),
    "codec heads": (CODEC_HEADS, musicgen, "lm_heads."),
    "csm": (CSM, lambda: csm(True), ""),
    "csm untied": (CSM, lambda: csm(False), ""),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Part, Path, str]:
    part, make, prefix = CASES[request.param]
    torch.manual_seed(11)
    model = make()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "source")
    return part, tmp_path / "source", prefix


def test_a_part_goes_there_and_back_bit_for_bit(case: tuple[Part, Path, str], tmp_path: Path) -> None:
    part, folder, prefix = case
    source = HuggingFaceReader(folder)
    native = dict(native_tensors(part, source, source.config))
    if part is not CSM:
        assert {name.split(".")[0] for name in native} <= {"encoder", "adapter", "heads"}
    dcp.save(native, storage_writer=dcp.FileSystemWriter(tmp_path / "native"), no_dist=True)
    reader = NativeReader(tmp_path / "native")
    back = dict(foreign_tensors(part, set(reader.tensors), reader.read, source.config))

    before = {name: tensor for name, tensor in tensors(folder).items() if name.startswith(prefix)}
    before = {name: tensor for name, tensor in before.items() if not name.startswith("codec_model.")}
    assert before
    written = {part.prefixes[0] + name.removeprefix(prefix): tensor for name, tensor in before.items()}
    assert back.keys() == written.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in written.items())


@pytest.mark.parametrize("further", [0, 2], ids=["paraformer", "sense_voice"])
def test_blocks_of_funasrs_encoders_are_stacked_and_taken_apart(further: int) -> None:
    held = {name: torch.randn(shape) for name, shape in sanm_shapes(blocks=3, tp_blocks=further, entering=28).items()}
    conf = {"num_blocks": 3, **({"tp_blocks": further} if further else {})}
    source = SimpleNamespace(names={*held, "ctc.ctc_lo.bias"}, folder=Path("funasr"), read=held.__getitem__)
    native = dict(native_tensors(SANM_ENCODER, source, {"encoder_conf": conf}))  # type: ignore[arg-type]
    assert native["encoder.encoders.norm1.weight"].shape == (2, 16)
    assert native["encoder.encoders0.0.norm1.weight"].shape == (28,)
    assert ("encoder.tp_encoders.norm1.weight" in native) == bool(further)
    back = dict(foreign_tensors(SANM_ENCODER, set(native), native.__getitem__, conf))
    assert back.keys() == held.keys() and all(torch.equal(back[name], tensor) for name, tensor in held.items())
    with pytest.raises(BadInput, match=r"has no tensor encoder\.encoders\.2\."):
        dict(native_tensors(SANM_ENCODER, source, conf | {"num_blocks": 4}))  # type: ignore[arg-type]


def test_csm_layers_are_those_of_a_text_llm(tmp_path: Path) -> None:
    """Queries, keys and values of the backbone fused as the trunk has them."""
    csm(True).save_pretrained(tmp_path)
    source = HuggingFaceReader(tmp_path)
    native = dict(native_tensors(CSM, source, source.config))
    assert native["decoder.layers.self_attention.linear_qkv.weight"].shape == (3, (4 + 2 + 2) * 8, 32)
    assert native["depth.decoder.layers.mlp.linear_fc1.weight"].shape == (3, 2 * 48, 24)
    group = native["decoder.layers.self_attention.linear_qkv.weight"][2].view(2, 4, 8, 32)[1]
    assert torch.equal(group[2], source.read("backbone_model.layers.2.self_attn.k_proj.weight").view(2, 8, 32)[1])


def test_a_tensor_too_few_or_too_many_is_refused_by_name(tmp_path: Path) -> None:
    musicgen().save_pretrained(tmp_path)
    old = tensors(tmp_path)
    rewrite(tmp_path, {name: tensor for name, tensor in old.items() if name != "lm_heads.2.weight"})
    source = HuggingFaceReader(tmp_path)
    with pytest.raises(BadInput, match=r"has no tensor lm_heads.2.weight"):
        dict(native_tensors(CODEC_HEADS, source, source.config))
    rewrite(tmp_path, old | {"lm_heads.4.weight": torch.zeros(2)})
    source = HuggingFaceReader(tmp_path)
    with pytest.raises(BadInput, match=r"no place for tensor lm_heads.4.weight"):
        dict(native_tensors(CODEC_HEADS, source, source.config))
    with pytest.raises(BadInput, match="has no adapter: no names that begin with multi_modal_projector"):
        dict(native_tensors(ADAPTER, source, source.config))
    assert json.loads((tmp_path / "config.json").read_text())["num_codebooks"] == 4
    assert len({part.name for part in PARTS}) == len(PARTS)

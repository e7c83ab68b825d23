"""How a model hears through a pretrained speech encoder and an adapter, beside or instead of through codes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class AdapterKind(Enum):
    """What makes one vector of the LLM's of `stride` neighbouring vectors of the encoder's."""

    mlp = "mlp"  # side by side through two linear layers, ReLU between (LLaMA-Omni: 5, 2048)
    pooling = "pooling"  # each through two linear layers, ReLU between, then their mean (MiniCPM-o: 2 or 5)
    transformer = (
        "transformer"  # transformer layers over all, then a convolution and a linear layer (MinMo: 2 layers, 2)
    )


class EncoderKind(Enum):
    """Whose encoder it is. The spectrograms of FunASR's two are what they read: seven frames of Kaldi's filterbanks
    side by side, every six, normalised by `am.mvn`."""

    whisper = "whisper"  # a vector each 20 ms
    sense_voice = "sense_voice"  # SenseVoice-small: each 60 ms
    paraformer = "paraformer"  # offline, its attention sees all of a sound: each 60 ms


@dataclass
class EncoderConfig:
    """A pretrained speech encoder. A corpus keeps its vectors or its log-mel spectrograms (`corpus.features`); the
    model (`adapter`) reads the former, or computes them of the latter (`in_model`) and then can train it."""

    name: str = MISSING  # what shards call its vectors; its spectrograms are <name>_mel
    kind: EncoderKind = EncoderKind.whisper
    # A folder or hub name, or package:<name>; None: random, to try things out. Of whisper in transformers' form, of the
    # others FunASR's: model.pt (or model.safetensors) and am.mvn.
    weights: str | None = None
    mels: int = MISSING  # bands of a spectrogram
    width: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    ffn: int = MISSING
    tp_layers: int = 0  # further ones, of sense_voice alone
    kernel: int = 11  # frames that the attention's memory spans, of sense_voice and paraformer
    # Longest input, in vectors; longer sound is encoded as windows of this length. None, which whisper cannot have:
    # sound of any length at once.
    positions: int | None = 1500
    in_model: bool = False  # on the first pipeline stage; false: the corpus has its vectors, and it cannot be trained


@dataclass
class AdapterConfig:
    kind: AdapterKind = AdapterKind.mlp
    stride: int = 5  # vectors of the encoder's that one place of a sequence stands for
    hidden: int = 2048  # inner width of mlp and pooling
    layers: int = 2  # of transformer, as wide as the encoder
    heads: int = 8  # of transformer
    # Validation also gives each sample the sound of another one, as its control: loss text_shuffled.
    control: bool = True
